"""Several targets: what places a model alike is decided once, and every result has the same plan, byte for byte."""

import numpy as np
import pytest

from qcompiler import compiler
from qcompiler.compiler import compile_model
from qcompiler.recipe import Recipe
from qcompiler.registry import load_target
from qcompiler.shared_plan import places_alike
from tests.compiling import planned, samples, start
from tests.models import conv_net, save
from tests.targets.operators import around


@pytest.mark.parametrize(
    ("operator", "first", "second", "alike"),
    [
        ("Add", "arm", "x86", True),
        ("Add", "arm", "openvino", True),
        ("Mul", "arm", "openvino", False),
        ("Gemm", "arm", "openvino", True),
        ("Add", "arm", "qnn", True),
        ("Gemm", "arm", "qnn", False),
        ("Add", "arm", "tensorrt", False),
    ],
)
def test_tables_may_differ_where_the_model_does_not_go(operator, first, second, alike):
    state, context = planned(around(operator), target=first)
    assert places_alike(state, context, load_target(second)) is alike


def test_a_profile_that_keeps_a_layer_in_float_is_decided_for_itself():
    state, context = planned(conv_net(), target="arm:cortex-a72")
    assert not places_alike(state, context, load_target("arm:cortex-a76"))


@pytest.fixture
def searches(monkeypatch):
    """Give the names of the targets that something was decided for."""
    found = []
    decide = compiler._Compilation._decide

    def counted(self, *arguments):
        found.append(self.target.full_name)
        return decide(self, *arguments)

    monkeypatch.setattr(compiler._Compilation, "_decide", counted)
    return found


def compile_for(targets, folder, net):
    data = samples(start(net).model, count=96)
    np.savez(folder / "data.npz", **{k: np.concatenate([s[k] for s in data.samples]) for k in data[0]})
    recipe = Recipe(targets=targets, data=str(folder / "data.npz"), effort=0)
    return compile_model(save(net, folder), recipe=recipe, out=folder / "out", force=True)


def test_one_search_one_plan(searches, tmp_path):
    results = compile_for(("arm", "reference"), tmp_path, around("Add"))
    assert searches == ["arm:cortex-a76"]
    first, second = (r.folder for r in results)
    for name in ("plan.json", "plan.npz", "model.onnx"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    for result in results:
        assert "one search, one plan, several lowerings: arm:cortex-a76, reference" in result.report.verdict.notes
    assert (first / "model.ort").exists()
    assert not (second / "model.ort").exists()


def test_a_shared_plan_replays_to_the_same_bytes(tmp_path):
    folder = compile_for(("arm", "reference"), tmp_path, around("Add"))[1].folder
    recipe = Recipe(targets=("reference",), data=str(tmp_path / "data.npz"), effort=0, replay=str(folder))
    (again,) = compile_model(tmp_path / "model.onnx", recipe=recipe, out=tmp_path / "again")
    for name in ("plan.json", "plan.npz", "model.onnx"):
        assert (again.folder / name).read_bytes() == (folder / name).read_bytes()


def test_what_is_placed_in_another_way_is_searched_again(searches, tmp_path):
    results = compile_for(("arm:cortex-a72", "arm:cortex-a76"), tmp_path, conv_net())
    assert searches == ["arm:cortex-a72", "arm:cortex-a76"]
    assert not any("one search" in note for r in results for note in r.report.verdict.notes)
