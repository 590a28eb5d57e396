"""solve-codes on weights with a scale for every block of inputs: what it plans, and that the runtime computes it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qcompiler.blockwise import with_form
from qcompiler.compiler import compile_model
from qcompiler.layer_problems import planned_weights
from qcompiler.plan import Precision
from qcompiler.protocols import MatMulForm
from qcompiler.quant.levels import uniform_levels
from qcompiler.recipe import Recipe, bits_fields
from qcompiler.registry import make_pass
from qcompiler.state import Fact
from tests.attention_nets import separate
from tests.compiling import context, lowered, outputs, run_passes, samples, start
from tests.models import FLOAT, build, save
from tests.passes.states import plan_bytes
from tests.passes.test_matmul_nbits import exact, make, meaning, product

BLOCK = 32


def correlated(state, count=24, rows=16, seed=0):
    """Return samples whose inputs have much in common, as those of a trained network do."""
    (value,) = state.model.graph.inputs
    width = int(value.shape[-1])
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((width, width)) / np.sqrt(width) + 0.3 * np.eye(width)
    data = (np.random.default_rng(seed + 1).standard_normal((count, rows, width)) @ mix + 0.2).astype(np.float32)
    return [{value.name: one[None]} for one in data]


class Fixed(list):
    """Samples as the passes read them."""

    source, fingerprint, preprocessing, notes, rows_per_sample, row_names = "drawn", "", "", (), 1, ()


def blockwise(proto, bits=3, data=None):
    """Return a state whose products have a scale for every 32 inputs, nearest codes, and the context."""
    state = start(proto)
    where = context("x86", data or Fixed(correlated(state)), (), f"W{bits}A8:uniform")
    plan = state.plan
    for node in state.model.graph:
        if node.op_type == "MatMul" and node.inputs[1].is_initializer():
            run_bits = min(b for b in (2, 4, 8) if b >= bits)
            plan = with_form(plan, node.name, MatMulForm(Precision.BLOCKWISE, run_bits, BLOCK, 0))
    return run_passes(replace(state, plan=plan), where, "place", "observe", "scale-weights"), where


def output_error(state, name="w", seed=7):
    """Return the mean square of what a rounded weight does to the product's output, on samples not seen."""
    weight = state.model.graph.initializers[name].const_value.numpy().astype(np.float64)
    columns = np.concatenate([next(iter(s.values()))[0] for s in correlated(state, seed=seed)])
    return float(np.square(columns @ (meaning(state, name) - weight)).mean())


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("shape", [(96, 24), (100, 7)])
def test_codes_and_scales_of_blocks_lower_the_error(bits, shape):
    before, where = blockwise(product(shape, data=(1, "rows")), bits)
    result = make_pass("solve-codes").run(before, where)
    entry = result.state.plan.tensors["w"]
    assert entry.codes.shape == shape
    assert np.isin(entry.codes, entry.levels).all()
    np.testing.assert_array_equal(entry.levels, uniform_levels(bits))
    assert entry.scale.shape == (shape[1], -(-shape[0] // BLOCK)) == before.plan.tensors["w"].scale.shape
    assert entry.scale.dtype == np.float32
    assert entry.decided_by[-1] == "solve-codes"
    assert "on planned levels" in entry.reason
    assert output_error(result.state) < output_error(before)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_loses_less_than_nearest_in_the_median(bits):
    lost = []
    for seed in range(5):
        proto = product((96, 24), data=(1, "rows"))
        state = start(proto)
        before, where = blockwise(proto, bits, Fixed(correlated(state, seed=seed)))
        lost.append(
            [
                output_error(run_passes(before, where, f"solve-codes{{solvers={name}}}"), seed=seed)
                for name in ("nearest", "gptq", "descent")
            ]
        )
    medians = np.median(lost, axis=0)
    assert (np.diff(medians) < 0).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_runtime_computes_what_was_solved(bits):
    proto = product((100, 24), data=(1, 16))
    state, where = blockwise(proto, bits)
    state = run_passes(state, where, "solve-codes")
    model = lowered(replace(state, facts=state.facts | {Fact.RANGES}), where).model
    assert [n.op_type for n in model.graph][-1] == "MatMulNBits"
    feeds = correlated(state, 1, seed=9)[0]
    expected = exact(proto, meaning(state), feeds)
    (found,) = outputs(model, feeds)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_other_passes_see_only_weights_with_a_scale_per_channel():
    state, _ = blockwise(product(data=(1, 3)))
    assert planned_weights(state, range(1, 8)) == []
    (weight,) = planned_weights(state, range(1, 8), blocks=True)
    assert weight.block_size == BLOCK


def test_without_samples_the_searched_blocks_are_kept():
    before, where = blockwise(product(data=(1, 3)))
    result = make_pass("solve-codes").run(before, replace(where, calibration=None))
    assert result.state.plan.tensors["w"] is before.plan.tensors["w"]
    assert "there are no samples" in result.report.skipped[0].reason


def test_heads_of_attention_are_solved_with_blocks():
    with pytest.MonkeyPatch.context() as patch:
        for name, size in (("WIDTH", 64), ("HEADS", 4), ("SIZE", 16)):
            patch.setattr(f"tests.attention_nets.{name}", size)
        proto, _ = separate()
    data = samples(start(proto).model, 24, free=7)
    before, where = blockwise(proto, 2, data)
    result = make_pass("solve-codes{solvers=nearest+gptq+boa+aespa}").run(before, where)
    layers, attention = result.report.tables
    assert attention.rows[0].note == "self, Softmax; by head: query, key, value"
    values = {row.name: dict(zip(layers.columns, row.values, strict=True)) for row in layers.rows}
    for role in ("query", "key", "value"):
        assert result.state.plan.tensors[f"{role}.weight"].scale.shape == (64, 2)
        assert values[f"{role}.weight"]["aespa"] > max(values[f"{role}.weight"][n] for n in ("gptq", "nearest"))
    again = make_pass("solve-codes{solvers=nearest+gptq+boa+aespa}").run(before, where)
    assert plan_bytes(result.state.plan) == plan_bytes(again.state.plan)


def test_a_decoder_is_compiled_with_solved_blocks_and_replayed(tmp_path):
    rng = np.random.default_rng(0)
    width = 512
    weights = {n: (rng.standard_normal((width, width)) / 22).astype(np.float32) for n in ("w1", "w2")}
    nodes = [
        make("MatMul", ["x", "w1"], ["a"], name="first"),
        make("Relu", ["a"], ["b"], name="relu"),
        make("MatMul", ["b", "w2"], ["y"], name="second"),
    ]
    proto = build(nodes, [("x", FLOAT, ["batch", 1, width])], [("y", FLOAT, ["batch", 1, width])], weights)
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((64, 1, width)).astype(np.float32))
    recipe = Recipe(targets=("x86",), data=str(tmp_path / "data.npz"), decode=True, **bits_fields("W4A8:uniform"))
    recipe = replace(recipe, floors=replace(recipe.floors, max_latency_ratio=100.0, min_sqnr_db=-100.0))
    model = save(proto, tmp_path)
    (result,) = compile_model(model, recipe=recipe, out=tmp_path / "one")
    again = replace(recipe, replay=str(tmp_path / "one"))
    (replayed,) = compile_model(model, recipe=again, out=tmp_path / "two")
    first, second = ((r.folder / "model.onnx").read_bytes() for r in (result, replayed))
    assert first == second
    assert b"MatMulNBits" in first
    solved = next(p for p in result.report.passes if p.name == "solve-codes")
    assert {row.name for row in solved.tables[0].rows} == {"w1", "w2"}
