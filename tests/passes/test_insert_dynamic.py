"""Products whose activations get their scale at run time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import helper

from qcompiler.errors import QCompileError
from qcompiler.recipe import MatchRule
from tests.compiling import lowered, outputs, run_passes, runtime_ops, samples
from tests.golden_text import assert_golden
from tests.models import FLOAT, build
from tests.passes.lowering import rounded_plan, sixteenths

make = helper.make_node


def two_heads():
    """One value, two products: it is quantized once."""
    nodes = [make("MatMul", ["x", "v"], ["y"], name="left"), make("MatMul", ["x", "w"], ["z"], name="right")]
    constants = {"v": sixteenths(4, 3) + np.float32(0.007), "w": sixteenths(4, 2, seed=1)}
    outs = [("y", FLOAT, [1, 2, 3]), ("z", FLOAT, [1, 2, 2])]
    return build(nodes, [("x", FLOAT, [1, 2, 4])], outs, constants)


def test_golden():
    state, where = rounded_plan(two_heads())
    assert_golden("insert-dynamic", run_passes(state, where, "insert-dynamic").model)


def test_the_runtime_fuses_them():
    state, where = rounded_plan(two_heads())
    ops = runtime_ops(lowered(state, where).model)
    assert "MatMul" not in ops
    fused = sum(ops.count(op) for op in ("DynamicQuantizeMatMul", "MatMulIntegerToFloat"))
    assert fused == 2


@pytest.mark.parametrize(
    ("data", "weight"), [([1, 2, 4], (4, 3)), ([2, 4], (4, 3)), ([2, 2, 4], (2, 4, 3)), ([3, 4], (4,))]
)
def test_products_of_every_rank(data, weight):
    node = make("MatMul", ["x", "w"], ["y"], name="node")
    product = np.zeros(data, np.float32) @ np.zeros(weight, np.float32)
    proto = build([node], [("x", FLOAT, data)], [("y", FLOAT, product.shape)], {"w": sixteenths(*weight)})
    state, where = rounded_plan(proto, rules=(MatchRule(pattern="node", scheme="dynamic"),))
    model = lowered(state, where).model
    assert "MatMulInteger" in [n.op_type for n in model.graph]
    feeds = samples(state.model, 1)[0]
    (expected,) = outputs(proto, feeds)
    for optimize in (False, True):
        (found,) = outputs(model, feeds, optimize=optimize)
        # Activations move by half of their own step, weights here are on their grid.
        step = (max(feeds["x"].max(), 0) - min(feeds["x"].min(), 0)) / 255
        room = 0.5 * step * np.abs(sixteenths(*weight)).sum(-2 if len(weight) > 1 else 0).max()
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= room * 1.01


def test_the_pipeline_notices_wrong_codes(monkeypatch):
    from qcompiler import lowering
    from qcompiler.passes import insert_dynamic

    state, where = rounded_plan(two_heads())
    right = lowering.lazy_codes

    def wrong(value, entry):
        return right(value, replace(entry, codes=np.ones(value.const_value.shape.numpy(), np.int8)))

    monkeypatch.setattr(insert_dynamic, "lazy_codes", wrong)
    with pytest.raises(QCompileError, match="'left' does not decode"):
        lowered(state, where)


def test_nothing_dynamic_is_nothing_written():
    proto = build([make("Relu", ["x"], ["y"])], [("x", FLOAT, [2])], [("y", FLOAT, [2])])
    state, where = rounded_plan(proto)
    assert run_passes(state, where, "insert-dynamic").model is state.model
