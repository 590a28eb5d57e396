"""``--verify emulate`` and ``--device emulated:BOARD``: what is asked, what is printed, and how they are refused."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcompiler.counts import InstructionCounts
from qcompiler.errors import RuntimeUnavailable
from qcompiler.inspection import counting
from qcompiler.runtime.emulation import check
from qcompiler.runtime.emulation.build import Emulator
from qcompiler.runtime.emulation.run import CountedModel, EmulatedFindings

EMULATOR = Emulator(tree=Path("/t"), qemu=Path("/q"), libraries="", counter=Path("/c"), versions=(("qemu", "7.2.22"),))


@pytest.fixture
def model(tmp_path):
    """y = x @ w for rows of 64."""
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32), "w")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 64]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")], "g", *map(list, zip(values)))
    graph.initializer.append(weight)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def board(monkeypatch):
    """Stand in for the boards: every model runs 1,234,567 instructions, the second half as many."""

    def count(emulator, board, job):
        assert (job.samples / "00000.npz").is_file()
        sizes = {"original": 2_469_134, "result": 1_234_567}
        models = {
            kind: CountedModel(
                runs=(InstructionCounts(dot=1000, other=sizes[kind] - 1000),) * 2,
                operators=(("fc", "MatMul"), ("copy", "Reshape")),
                nodes=(InstructionCounts(dot=1000, other=500_000), InstructionCounts(other=10)),
            )
            for kind in job.models
        }
        return EmulatedFindings(models=models)

    monkeypatch.setattr(counting, "prepare_emulator", lambda started: EMULATOR)
    monkeypatch.setattr(counting, "run_emulated", count)


def test_a_board_counts_instructions_and_tells_no_time(run, board, model):
    result = run("profile", model, "--device", "emulated:cortex-a76", "--layers")
    assert result.code == 0
    assert "instructions (emulated)" in result.out
    assert "1,234,567" in result.out
    assert "501,000" in result.out
    assert " ms" not in result.out
    assert "emulated cortex-a76 (qemu 7.2.22)" in result.err


def test_two_models_as_text_and_as_json(run, board, model):
    words = ("profile", model, "--compare", model, "--device", "emulated:cortex-a53")
    assert "instruction ratio 0.500 (a count, not a speedup)" in run(*words).out
    found = json.loads(run(*words, "--json").out)
    assert found["board"] == "cortex-a53"
    assert found["counts"]["other"] == 1_233_567
    assert [node["name"] for node in found["nodes"]] == ["fc", "(inserted by the runtime)"]
    assert "min_ms" not in json.dumps(found)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--device", "emulated:cortex-m4"), "no emulated board 'cortex-m4'; there are cortex-a53"),
        (("--device", "emulated:i8mm", "--threads", "2"), "an emulated board has one core"),
    ],
)
def test_a_board_that_makes_no_sense_is_a_usage_error(words, message, run, board, model):
    result = run("profile", model, *words)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_a_model_that_does_not_run_on_a_board_is_named(run, board, model, monkeypatch):
    broken = EmulatedFindings(failure="no kernel for it", culprit="result")
    monkeypatch.setattr(counting, "run_emulated", lambda *_: broken)
    result = run("profile", model, "--device", "emulated:i8mm")
    assert result.code == 6
    assert f"{model} does not run on the emulated i8mm: no kernel for it" in result.err


def test_verify_is_part_of_the_recipe(run, fake_compiler, tmp_path):
    run("m.onnx", "--verify", "emulate")
    (tmp_path / "q.toml").write_text('verify = "emulate"\n')
    run("m.onnx", "--config", tmp_path / "q.toml")
    run("m.onnx", "--config", tmp_path / "q.toml", "--verify", "host")
    assert [call["recipe"].verify for call in fake_compiler.calls] == ["emulate", "emulate", "host"]


def test_another_way_to_verify_is_refused(run):
    result = run("m.onnx", "--verify", "board")
    assert result.code == 2
    assert "verify is 'board'; it must be one of host, emulate" in result.err


def test_emulation_that_cannot_be_had_is_refused_before_anything_is_done(run, model, monkeypatch):
    def refuse(started):
        raise RuntimeUnavailable("qemu is missing; install it with 'apt-get install qemu-user'")

    monkeypatch.setattr(check, "prepare_emulator", refuse)
    result = run(model, "--verify", "emulate", "-o", "out")
    assert result.code == 6
    assert result.err.count("\n") == 1
    assert "apt-get install qemu-user" in result.err
    assert not Path("out").exists()


def test_emulation_needs_a_target_that_is_a_board(run, model):
    result = run(model, "--target", "x86", "--verify", "emulate")
    assert result.code == 2
    assert "no target is an ARM board" in result.err
