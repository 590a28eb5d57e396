"""The real thing: the tree is built from the indexes of this machine, and a model is compiled and run on it."""

import shutil

import numpy as np
import pytest
from onnx import TensorProto, helper

from qcompiler.compiler import compile_model
from qcompiler.errors import RuntimeUnavailable
from qcompiler.recipe import Recipe
from qcompiler.runtime.emulation.build import prepare_emulator
from qcompiler.runtime.emulation.cache import is_complete

pytestmark = pytest.mark.slow
NOT_HERE = ("is made for Debian", "apt-get failed", "pip failed", "cannot be fetched", "cannot be started")
"""What an emulator that cannot be had says; that it does not work is another thing, and fails."""
CHANNELS, SIDE = 32, 14


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    """Give an emulator that was built for this test, in a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        try:
            made = prepare_emulator()
        except RuntimeUnavailable as error:
            if any(words in str(error) for words in NOT_HERE):
                pytest.skip(f"no ARM emulation here: {error}")
            raise
        yield made
        shutil.rmtree(made.tree)


@pytest.fixture(scope="module")
def runs(emulator, tmp_path_factory):
    """Give what the boards found about two convolutions that are integers from end to end."""
    folder = tmp_path_factory.mktemp("model")
    generator = np.random.default_rng(0)
    weights = [
        helper.make_tensor(
            f"w{i}",
            TensorProto.FLOAT,
            [CHANNELS, CHANNELS, 3, 3],
            generator.standard_normal(CHANNELS * CHANNELS * 9, dtype=np.float32) / 17,
        )
        for i in range(2)
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "w1"], ["y"], name="second", pads=[1, 1, 1, 1]),
    ]
    shape = [1, CHANNELS, SIDE, SIDE]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    np.savez(folder / "data.npz", x=generator.standard_normal((24, *shape[1:]), dtype=np.float32))
    recipe = Recipe(targets=("arm:cortex-a76",), data=str(folder / "data.npz"), effort=0, verify="emulate")
    (result,) = compile_model(folder / "model.onnx", recipe=recipe, out=folder / "out")
    assert result.report.verdict.failure == ""
    said = "model.ort runs on the emulated boards and gives the same bits as model.onnx there"
    assert said in result.report.verdict.notes
    return {run.board: run for run in result.report.verdict.emulated}


def test_the_tree_is_whole_and_is_not_built_twice(emulator):
    assert is_complete(emulator.tree)
    assert emulator.counter.is_file()


def test_integers_agree_bit_for_bit_on_every_board(runs):
    assert list(runs) == ["cortex-a76", "cortex-a72", "i8mm"]
    assert {o.agreement for run in runs.values() for o in run.outputs} == {"identical"}
    assert all(run.float_nodes == () and run.samples == 4 for run in runs.values())


def test_every_board_uses_its_own_kernels(runs):
    macs = 2 * CHANNELS * CHANNELS * 9 * SIDE * SIDE
    a76, a72, i8mm = (runs[name] for name in ("cortex-a76", "cortex-a72", "i8mm"))
    assert a76.original.fmla == pytest.approx(macs / 4, rel=0.3)
    assert a76.result.dot == pytest.approx(macs / 16, rel=0.3)
    assert a76.result.matrix == a76.result.widening == 0
    assert a72.result.dot == a72.result.matrix == 0
    assert a72.result.widening > macs / 16
    assert i8mm.result.matrix == pytest.approx(macs / 32, rel=0.3)
    assert a76.ratio < 0.7
    assert max(run.spread for run in runs.values()) < 0.01


def test_the_nodes_add_up_to_a_run(runs):
    for run in runs.values():
        assert run.notes == ()
        nodes = {node.name: node for node in run.nodes}
        assert {"first", "second"} <= set(nodes)
        for side, whole in (("before", run.original), ("after", run.result)):
            counted = [getattr(node, side) for node in run.nodes if getattr(node, side)]
            # The call from Python and what the runtime does around the nodes are in the whole run alone.
            assert sum(c.total for c in counted) == pytest.approx(whole.total, abs=100_000)
            assert sum(c.dot for c in counted) == pytest.approx(whole.dot, rel=0.01)
