"""A package of its own adds passes and a target by entry point."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from onnx import helper

from tests import models

PASSES = (
    "drop-dropout",
    "widen-float16",
    "fold-batch-norm",
    "place",
    "observe",
    "calibrate{method=minmax}",
    "power-of-two-scales",
    "scale-weights",
)


@pytest.fixture(scope="session")
def extras(examples, tmp_path_factory):
    """Give the folder that the example package is installed in."""
    pytest.importorskip("onnx_graphsurgeon")
    folder = tmp_path_factory.mktemp("extras")
    shutil.copytree(examples / "third_party", folder / "source")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "--target", str(folder / "site"), str(folder / "source")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture
def dropout_model(tmp_path):
    """Give the path of a network with a Dropout between two layers, and calibration data beside it."""
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((8, 3, 3, 3)) / 5).astype(np.float32)
    head = (rng.standard_normal((8, 16)) / 4).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Dropout", ["r"], ["d"], name="dropout"),
        helper.make_node("GlobalAveragePool", ["d"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "h"], ["y"], name="head"),
    ]
    info = [("x", models.FLOAT, ["N", 3, 8, 8])], [("y", models.FLOAT, ["N", 16])]
    model = models.build(nodes, *info, {"w": weight, "h": head})
    np.savez(tmp_path / "x.npz", x=rng.standard_normal((24, 3, 8, 8)).astype(np.float32))
    return models.save(model, tmp_path)


def test_the_lists_name_what_was_added(python, extras, tmp_path):
    passes = json.loads(python("-m", "qcompiler", "passes", "--json", cwd=tmp_path, paths=[extras]).stdout)
    kinds = {entry["name"]: entry["kind"] for entry in passes}
    assert kinds["power-of-two-scales"] == "plan"
    assert kinds["drop-dropout"] == "rewrite"
    targets = json.loads(python("-m", "qcompiler", "targets", "--json", cwd=tmp_path, paths=[extras]).stdout)
    assert "conv-engine" in {entry["name"] for entry in targets}


def test_without_the_package_there_is_no_such_target(python, tmp_path):
    done = python("-m", "qcompiler", "model.onnx", "--target", "conv-engine", cwd=tmp_path)
    assert done.returncode == 2
    assert "no target is named 'conv-engine'" in done.stderr


def test_its_passes_and_its_target_compile_a_model(python, extras, dropout_model, tmp_path):
    command = ["-m", "qcompiler", dropout_model, "--target", "conv-engine", "--data", tmp_path / "x.npz"]
    command += ["--passes", ",".join(PASSES), "--max-size", "1MB", "--min-sqnr", "10", "-o", tmp_path / "out"]
    done = python(*command, cwd=tmp_path, paths=[extras])
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    layers = {layer["name"]: layer for layer in report["layers"]}
    assert layers["conv"]["precision"] == "integer"
    assert layers["head"]["precision"] != "integer"
    assert "the engine has no Gemm" in layers["head"]["reason"]
    assert_powers_of_two(tmp_path / "out")


def assert_powers_of_two(folder):
    plan = json.loads((folder / "plan.json").read_text())
    with np.load(folder / "plan.npz") as arrays:
        scales = [arrays[t["scale"]] for t in plan["tensors"] if t["role"] == "activation"]
    assert scales
    for scale in scales:
        mantissa, _ = np.frexp(scale)
        assert mantissa == 0.5


def test_drop_dropout_leaves_no_dropout(extras, dropout_model, monkeypatch):
    monkeypatch.syspath_prepend(extras)
    from qcompile_extras.drop_dropout import drop_dropout

    from qcompiler.model.read import read_source, to_ir
    from qcompiler.pipeline import Pipeline
    from qcompiler.plan import CompressionPlan
    from qcompiler.recipe import Recipe
    from qcompiler.registry import load_target
    from qcompiler.state import Context, State

    state = State(model=to_ir(read_source(dropout_model)), plan=CompressionPlan())
    context = Context(target=load_target("reference"), recipe=Recipe())
    after, (report,) = Pipeline((drop_dropout(),)).run(state, context)
    assert report.changed
    assert [n.op_type for n in after.model.graph] == ["Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]
