"""A task is a file of scales: tuned for a result, put into it, and nothing else of the model changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch")

from qcompiler.compiler import compile_model  # noqa: E402
from qcompiler.errors import DataError, InputError, OutputError  # noqa: E402
from qcompiler.plan import CompressionPlan, Role, save_npz  # noqa: E402
from qcompiler.recipe import Floors, Recipe, bits_fields  # noqa: E402
from qcompiler.task_scales.applying import apply_scales  # noqa: E402
from qcompiler.task_scales.file import CODES_KEY, load_scales, save_scales  # noqa: E402
from qcompiler.task_scales.tuning import TuneOptions, tune_scales  # noqa: E402
from qcompiler.training import scales  # noqa: E402
from qcompiler.training.driver import TrainingRecord  # noqa: E402
from tests.models import conv_net, dense_net, run, save  # noqa: E402

ROWS = 128
OPEN = Floors(min_sqnr_db=-1000.0, min_agreement=0.0, max_latency_ratio=1000.0)


@pytest.fixture(scope="module", params=["conv", "dense"])
def case(request, tmp_path_factory):
    """Give a folder with a model, a result of 3 bits, samples, and labels of another task: classes turned by one."""
    folder = tmp_path_factory.mktemp(request.param)
    proto = conv_net(channels=32) if request.param == "conv" else dense_net(width=64)
    name = proto.graph.input[0].name
    shape = (ROWS, 3, 16, 16) if request.param == "conv" else (ROWS, 64)
    rows = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    np.savez(folder / "data.npz", **{name: rows})
    others = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    np.savez(folder / "task.npz", **{name: others})  # samples that no solver has fitted the codes to
    model = save(proto, folder)
    labels = np.argmax(run(proto, {name: rows})[0], 1)
    np.save(folder / "labels.npy", labels)
    recipe = Recipe(targets=("x86",), data=str(folder / "data.npz"), floors=OPEN, **bits_fields("W3A8:uniform"))
    compile_model(model, recipe=recipe, out=folder / "result")
    return folder


@pytest.fixture(scope="module")
def tuned(case):
    options = TuneOptions(data=str(case / "task.npz"), steps=60, rows=16)
    found = tune_scales(case / "result", case / "model.onnx", options)
    save_scales(case / "scales.npz", found.task)
    return found


def constants(path):
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def outputs(path, folder):
    with np.load(folder / "data.npz") as archive:
        return run(path, dict(archive))[0]


def divergence(scores, wanted):
    """Return what is tuned: how far class scores are from those of the float model, the same for shifted ones."""
    found, exact = (torch.log_softmax(torch.from_numpy(v).double(), -1) for v in (scores, wanted))
    return float((exact.exp() * (exact - found)).sum(-1).mean())


def test_tuning_helps_on_samples_it_has_not_seen_and_leaves_the_plan_alone(case, tuned):
    assert tuned.after < tuned.before
    plan = CompressionPlan.load(case / "result")
    planned = {t.name: t.scale for t in plan.tensors.values() if t.role is Role.WEIGHT and t.scale is not None}
    assert set(tuned.task.scales) == set(planned)
    assert all(tuned.task.scales[name].shape == scale.shape for name, scale in planned.items())


def test_all_samples_are_learned_but_those_that_judge(case, monkeypatch):
    learned = []
    monkeypatch.setattr(scales, "fine_tune", lambda model, compressor, period, task: learned.append(task) or RAN)
    tune_scales(case / "result", case / "model.onnx", TuneOptions(data=str(case / "data.npz"), steps=1))
    (rows,) = learned[0].samples.values()
    assert len(rows) == ROWS - 1 - (ROWS - 1) // 4


RAN = TrainingRecord(steps=1, period=1, losses=(), features=0)


def test_labels_alone_are_learned(case):
    options = TuneOptions(data=str(case / "data.npz"), labels=str(case / "labels.npy"), steps=60, rows=16)
    found = tune_scales(case / "result", case / "model.onnx", options)
    assert found.unit.startswith("cross entropy")
    assert found.after < found.before


def test_only_scales_and_the_biases_on_their_grids_change(case, tuned, tmp_path):
    before = constants(case / "result" / "model.onnx")
    done = apply_scales(case / "result", case / "scales.npz", tmp_path / "task.onnx")
    after = constants(tmp_path / "task.onnx")
    assert before.keys() == after.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert done.weights == len(tuned.task.scales)
    for name, scale in tuned.task.scales.items():
        assert any(np.array_equal(after[key].reshape(-1), scale.reshape(-1)) for key in changed if name in key)
    assert all(before[name].dtype in (np.float32, np.int32) for name in changed)
    assert sum(before[name].dtype == np.int32 for name in changed) == done.biases


def test_the_written_model_computes_what_was_tuned(case, tuned, tmp_path):
    apply_scales(case / "result" / "model.onnx", case / "scales.npz", tmp_path / "task.onnx")
    wanted = outputs(case / "model.onnx", case)
    before, after = (outputs(p, case) for p in (case / "result" / "model.onnx", tmp_path / "task.onnx"))
    assert divergence(after, wanted) < divergence(before, wanted)


def test_doubled_scales_of_the_last_layer_double_its_product_but_not_its_bias(case, tuned, tmp_path):
    plan = CompressionPlan.load(case / "result")
    name = "fc.w" if "fc.w" in plan.tensors else "w1"
    scale = plan.tensors[name].scale
    save_scales(tmp_path / "twice.npz", replace(tuned.task, scales={name: scale * np.float32(2)}))
    done = apply_scales(case / "result", tmp_path / "twice.npz", tmp_path / "task.onnx")
    assert done.scales == scale.size
    if name == "fc.w":
        bias = numpy_helper.to_array(
            next(t for t in onnx.load(case / "model.onnx").graph.initializer if t.name == "fc.b")
        )
        correction = plan.tensors.get("fc:bias")
        shift = 0 if correction is None or correction.correction is None else correction.correction
        once, twice = (
            outputs(p, case) - bias - shift for p in (case / "result" / "model.onnx", tmp_path / "task.onnx")
        )
        assert np.allclose(twice, 2 * once, atol=0.02 * np.abs(once).max())


def test_an_own_scale_is_the_same_model(case, tuned, tmp_path):
    plan = CompressionPlan.load(case / "result")
    same = {name: plan.tensors[name].scale for name in tuned.task.scales}
    save_scales(tmp_path / "same.npz", replace(tuned.task, scales=same))
    apply_scales(case / "result", tmp_path / "same.npz", tmp_path / "task.onnx")
    assert np.array_equal(outputs(tmp_path / "task.onnx", case), outputs(case / "result" / "model.onnx", case))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s, n: {**s, "other": s[n]}, "no weight of the compiled model"),
        (lambda s, n: {**s, n: s[n].astype(np.float64)}, "is float64, expected float32"),
        (lambda s, n: {**s, n: s[n][:-1]}, "has shape"),
        (lambda s, n: {**s, n: -s[n]}, "not positive"),
        (lambda s, n: {**s, n: np.full_like(s[n], np.nan)}, "not positive"),
        (lambda s, n: {}, "holds no scale"),
    ],
)
def test_scales_that_do_not_fit_are_refused_on_one_line(change, words, case, tuned, tmp_path):
    name = next(iter(tuned.task.scales))
    save_scales(tmp_path / "wrong.npz", replace(tuned.task, scales=change(dict(tuned.task.scales), name)))
    with pytest.raises(InputError, match=words) as caught:
        apply_scales(case / "result", tmp_path / "wrong.npz", tmp_path / "task.onnx")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "task.onnx").exists()


def test_scales_for_other_codes_are_refused(case, tuned, tmp_path):
    save_scales(tmp_path / "wrong.npz", replace(tuned.task, codes=bytes(32)))
    with pytest.raises(InputError, match="other codes"):
        apply_scales(case / "result", tmp_path / "wrong.npz", tmp_path / "task.onnx")


def test_a_file_of_something_else_is_refused(case, tmp_path):
    plan = CompressionPlan.load(case / "result")
    (tmp_path / "text.npz").write_text("no archive")
    save_npz(tmp_path / "bare.npz", {"a": np.ones(1, np.float32)})
    for name in ("text.npz", "bare.npz", "missing.npz"):
        with pytest.raises(InputError, match="tune-scales"):
            load_scales(tmp_path / name, plan)
    assert CODES_KEY in np.load(case / "scales.npz").files


def test_a_file_is_not_replaced_without_force_and_the_model_never(case, tuned, tmp_path):
    written = tmp_path / "task.onnx"
    written.write_text("mine")
    with pytest.raises(OutputError, match="--force"):
        apply_scales(case / "result", case / "scales.npz", written)
    apply_scales(case / "result", case / "scales.npz", written, force=True)
    with pytest.raises(OutputError, match="exists"):
        apply_scales(case / "result", case / "scales.npz", case / "result" / "model.onnx", force=True)


def test_the_wrong_float_model_is_refused(case, tmp_path):
    other = save(dense_net() if "conv" in case.name else conv_net(), tmp_path)
    with pytest.raises(DataError):
        tune_scales(case / "result", other, TuneOptions(data=str(case / "data.npz")))


def test_the_command_line_tunes_and_applies(case, tmp_path, monkeypatch, capsys):
    from qcompiler.cli import main

    monkeypatch.chdir(tmp_path)
    data = ["--data", str(case / "data.npz"), "--steps", "5"]
    assert main(["tune-scales", str(case / "result"), str(case / "model.onnx"), *data]) == 0
    assert "samples that were not learned" in capsys.readouterr().out
    assert main(["apply-scales", str(case / "result"), "scales.npz", "-o", "task.onnx"]) == 0
    assert "codes unchanged" in capsys.readouterr().out
    assert (tmp_path / "task.onnx").is_file()
