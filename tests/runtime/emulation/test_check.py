"""The verdict on emulated boards: equal bits, float rounding, requantized floats, and what is a failure."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from qcompiler.counts import InstructionCounts
from qcompiler.data import input_specs, synthetic_inputs
from qcompiler.errors import RuntimeUnavailable, UsageError
from qcompiler.recipe import Recipe
from qcompiler.records import Verdict
from qcompiler.runtime.emulation import check
from qcompiler.runtime.emulation.build import Emulator
from qcompiler.runtime.emulation.run import CountedModel, EmulatedFindings

EMULATOR = Emulator(tree=Path("/t"), qemu=Path("/q"), libraries="", counter=Path("/c"), versions=(("qemu", "7.2.22"),))
"""Never started: what it would have found is put in its place."""
INTEGER = (("input_QuantizeLinear", "QuantizeLinear"), ("fc", "QGemm"), ("out", "DequantizeLinear"))
MIXED = (("fc", "MatMul"), ("mid_QuantizeLinear", "QuantizeLinear"), *INTEGER)


@pytest.fixture
def inputs(tmp_path):
    """Give a small matrix product as original and result, with six samples."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "y")]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 4], np.eye(4, dtype=np.float32).ravel())
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")
    graph = helper.make_graph([node], "g", values[:1], values[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    made = ir.from_proto(model)
    samples = synthetic_inputs(input_specs(made), 6, seed=0)
    return check.EmulationInputs(
        target="arm:cortex-a76", original=path, result=path, float_model=made, planned_model=made, samples=samples
    )


def verdict():
    return Verdict(loaded=True, data="synthetic inputs", samples=6, executed_on="ONNX Runtime on x86-64")


def model(total, *, operators=INTEGER, dot=0, problem=""):
    runs = tuple(InstructionCounts(dot=dot, other=total - dot + extra) for extra in (1, 0))
    nodes = () if problem else tuple(InstructionCounts(other=10 * (i + 1)) for i in range(len(operators)))
    return CountedModel(runs=runs, operators=operators, nodes=nodes, nodes_unavailable=problem)


def boards_answer(monkeypatch, change=lambda y: y, **result):
    """Let every board answer as this machine does, but changed; return the jobs that they got."""
    jobs = []

    def run(emulator, board, job):
        jobs.append((board.name, job))
        for index in range(job.counts["result"]):
            with np.load(job.samples / f"{index:05d}.npz") as sample:
                np.savez(job.samples / f"{board.name}-result-{index:05d}.npz", y=change(sample["x"]))
        return EmulatedFindings(models={"original": model(1000), "result": model(400, dot=100, **result)})

    monkeypatch.setattr(check, "run_emulated", run)
    return jobs


def test_equal_bits_on_every_board(inputs, monkeypatch):
    jobs = boards_answer(monkeypatch)
    found = check.verify_emulated(verdict(), inputs, EMULATOR)
    assert found.failure == ""
    assert found.executed_on == "ONNX Runtime on x86-64; emulated: cortex-a76, cortex-a72, i8mm"
    assert [run.board for run in found.emulated] == [name for name, _ in jobs] == ["cortex-a76", "cortex-a72", "i8mm"]
    assert jobs[0][1].counts == {"original": 0, "result": 4}
    first = found.emulated[0]
    assert (first.kernels, first.samples, first.ratio) == ("dot", 4, 0.4)
    assert [(o.name, o.agreement, o.max_relative) for o in first.outputs] == [("y", "identical", 0.0)]
    assert first.spread == pytest.approx(1 / 401)
    assert first.versions == {"qemu": "7.2.22"}
    assert [(n.name, n.before.total, n.after.total) for n in first.nodes] == [
        ("(inserted by the runtime)", 40, 40),
        ("fc", 20, 20),
    ]


@pytest.mark.parametrize(
    ("factor", "operators", "agreement"),
    [
        (1 + 4e-6, INTEGER, "float rounding"),
        (1 + 1e-3, INTEGER, "differs"),
        (1 + 1e-3, MIXED, "requantized float"),
        (1 + 1e-1, MIXED, "differs"),
        (np.nan, MIXED, "differs"),
    ],
)
def test_how_much_may_differ(factor, operators, agreement, inputs, monkeypatch):
    boards_answer(monkeypatch, lambda y: y * np.float32(factor), operators=operators)
    found = check.verify_emulated(verdict(), inputs, EMULATOR)
    assert {o.agreement for run in found.emulated for o in run.outputs} == {agreement}
    assert bool(found.failure) == (agreement == "differs")
    if found.failure:
        assert found.failure.startswith("output 'y' on the emulated cortex-a76 differs from ")
        assert not found.held
    assert found.emulated[0].float_nodes == (("fc",) if operators is MIXED else ())


@pytest.fixture
def mobile(inputs, monkeypatch):
    """Give a function that puts a ``model.ort`` beside the result, which answers on every board as it is told."""
    inputs.result.with_suffix(".ort").write_bytes(b"never read")

    def answer(change=lambda y: y, result=lambda y: y):
        jobs = []

        def run(emulator, board, job):
            jobs.append(job)
            for kind, changed in (("result", result), ("mobile", change)):
                for index in range(job.counts[kind]):
                    with np.load(job.samples / f"{index:05d}.npz") as sample:
                        np.savez(job.samples / f"{board.name}-{kind}-{index:05d}.npz", y=changed(sample["x"]))
            return EmulatedFindings(models={kind: model(1000) for kind in job.models})

        monkeypatch.setattr(check, "run_emulated", run)
        return jobs

    return answer


def test_the_mobile_form_runs_on_the_boards_too(inputs, mobile):
    jobs = mobile()
    found = check.verify_emulated(verdict(), inputs, EMULATOR)
    assert jobs[0].counts == {"original": 0, "result": 4, "mobile": 4}
    assert jobs[0].models["mobile"].name == "model.ort"
    assert found.failure == ""
    assert found.notes == ("model.ort runs on the emulated boards and gives the same bits as model.onnx there",)


def test_a_last_bit_of_the_mobile_form_fails_where_all_else_is_exact(inputs, mobile):
    mobile(lambda y: y * np.float32(1 + 4e-6))
    found = check.verify_emulated(verdict(), inputs, EMULATOR)
    assert found.failure.startswith("output 'y' of model.ort on the emulated cortex-a76 differs by 0.0004")
    assert found.notes == ()
    mobile(lambda y: y * np.float32(1 + 4e-6), lambda y: y * np.float32(1 + 2e-6))
    found = check.verify_emulated(verdict(), inputs, EMULATOR)
    assert found.failure == ""
    assert "the same outputs as" in found.notes[0]
    mobile(lambda y: y * np.float32(1.01), lambda y: y * np.float32(1 + 2e-6))
    assert "of model.ort" in check.verify_emulated(verdict(), inputs, EMULATOR).failure


def test_a_mobile_form_that_does_not_run_on_a_board_is_a_failure(inputs, mobile, monkeypatch):
    broken = EmulatedFindings(failure="no kernel for QGemm", culprit="mobile")
    monkeypatch.setattr(check, "run_emulated", lambda *_: broken)
    found = check.verify_emulated(verdict(), inputs, EMULATOR)
    assert found.failure.startswith("model.ort does not run on the emulated cortex-a76: no kernel for QGemm")


def test_another_shape_or_type_differs(inputs, monkeypatch):
    boards_answer(monkeypatch, lambda y: y.astype(np.float64))
    assert "differs" in check.verify_emulated(verdict(), inputs, EMULATOR).failure
    boards_answer(monkeypatch, lambda y: y[:, :2])
    assert "differs" in check.verify_emulated(verdict(), inputs, EMULATOR).failure


def test_nodes_that_are_not_known_are_noted(inputs, monkeypatch):
    boards_answer(monkeypatch, problem="7 readings of the clock do not fit 2 nodes")
    found = check.verify_emulated(verdict(), inputs, EMULATOR).emulated[0]
    assert found.notes == (
        "instructions of the result by node are not known: 7 readings of the clock do not fit 2 nodes",
    )
    assert [n.after for n in found.nodes] == [None, None]


def test_a_result_that_does_not_run_on_a_board_is_a_failure(inputs, monkeypatch):
    broken = EmulatedFindings(failure="no kernel for QGemm", culprit="result")
    monkeypatch.setattr(check, "run_emulated", lambda *_: broken)
    found = check.verify_emulated(verdict(), inputs, EMULATOR)
    assert found.failure.startswith("the result does not run on the emulated cortex-a76: no kernel for QGemm; ")
    assert found.emulated == ()


@pytest.mark.parametrize(("culprit", "who"), [("original", "the original"), ("", "ONNX Runtime")])
def test_what_is_not_the_results_fault_is_no_verdict(culprit, who, inputs, monkeypatch):
    broken = EmulatedFindings(failure="signal 11", culprit=culprit)
    monkeypatch.setattr(check, "run_emulated", lambda *_: broken)
    with pytest.raises(RuntimeUnavailable, match=f"^{who} does not run on the emulated cortex-a76: signal 11$"):
        check.verify_emulated(verdict(), inputs, EMULATOR)


def test_the_emulator_is_prepared_only_where_it_is_asked_for(monkeypatch):
    said = []
    monkeypatch.setattr(check, "prepare_emulator", lambda started: started("building") or EMULATOR)

    def progress(what, done, total):
        said.append(what)

    assert check.emulator_for(Recipe(), ["arm:cortex-a76"], progress) is None
    assert check.emulator_for(Recipe(verify="emulate"), ["x86", "arm:cortex-a76"], progress) is EMULATOR
    assert said == ["building"]
    with pytest.raises(UsageError, match="no target is an ARM board"):
        check.emulator_for(Recipe(verify="emulate"), ["x86"], progress)
