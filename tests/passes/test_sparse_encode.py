"""Pruned weights in sparse formats: the runtime computes the same codes when it loads, and runs what it ran."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest

from qcompiler.budget import Budget, Checkpoint
from qcompiler.codec import jit
from qcompiler.codec.f2f_file import from_bytes
from qcompiler.codec.fixed_to_fixed import decrypt
from qcompiler.errors import QCompileError, UsageError
from qcompiler.model.edit import constant_of
from qcompiler.model.folding import folded
from qcompiler.model.save import save_model
from qcompiler.quant.levels import uniform_levels
from qcompiler.recipe import Recipe
from qcompiler.registry import make_pass
from qcompiler.runtime.storage import SPARSE, WHOLE, stored_bytes
from qcompiler.state import Context, State
from qcompiler.unpacking.encoded import EACH_BYTES, F2F, FORMATS, ONCE_BYTES
from qcompiler.unpacking.export import export_streams, streams_of
from tests.compiling import lowered, outputs, planned, run_passes, runtime_ops, samples, serialized
from tests.models import FLOAT, build, token_net
from tests.passes.sparse import pruned
from tests.passes.test_pack_bits import conv_and_gemm, wider_branches, wider_loop

SYMMETRIC = np.arange(-7, 8).astype(np.int8)
LOSSLESS_LOWERING = ("sparse-encode", "pack-bits")


def asking(where: Context, name: str) -> Context:
    return replace(where, recipe=replace(where.recipe, sparse_format=name))


def dense(state: State, where: Context):
    names = [n for n in where.target.lower_passes() if n not in LOSSLESS_LOWERING]
    return run_passes(state, where, *names).model


def encoded(state: State, where: Context, **options):
    """Return the result of the pass alone, on lowered codes."""
    before = run_passes(state, where, "insert-qdq")
    return replace(make_pass("sparse-encode"), **options).run(before, where)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("levels", [None, SYMMETRIC, uniform_levels(3)], ids=["8 bits", "15 levels", "8 levels"])
def test_the_runtime_runs_the_same_kernels_on_the_same_weights(name, sparsity, levels):
    if levels is not None and 0 not in levels:
        levels = np.sort(np.asarray([0, *levels[1:]], np.int8))
    bits = {None: 8, 15: 4, 8: 3}[None if levels is None else levels.size]
    state, where = planned(conv_and_gemm(odd=True), bits=f"W{bits}A8")
    state, where = pruned(state, sparsity, levels=levels), asking(where, name)
    sparse, plain = lowered(state, where).model, dense(state, where)
    assert Counter(runtime_ops(sparse)) == Counter(runtime_ops(plain))
    feeds = samples(state.model, seed=5)[0]
    expected = outputs(plain, feeds)
    assert np.array_equal(outputs(sparse, feeds), expected)
    assert np.array_equal(outputs(sparse, feeds, optimize=False), outputs(plain, feeds, optimize=False))


@pytest.mark.parametrize("options", [{"code": "8-0"}, {"code": "8-1"}, {"interleave": False}])
def test_every_code_decodes(options):
    state, where = planned(conv_and_gemm(), bits="W8A8")
    state, where = pruned(state, 0.8), asking(where, F2F)
    model = encoded(state, where, **options).state.model
    plain = run_passes(state, where, "insert-qdq").model
    feeds = samples(state.model)[0]
    assert np.array_equal(outputs(model, feeds), outputs(plain, feeds))


@pytest.mark.skipif(not jit.AVAILABLE, reason="numba is not installed: the largest code takes too long")
def test_the_largest_code_decodes():
    test_every_code_decodes({"code": "8-2"})


@pytest.mark.parametrize("name", ["f2f", "bitmask", "delta"])
@pytest.mark.parametrize("proto", [wider_branches(), wider_loop(), token_net(words=200)], ids=["If", "Loop", "dynamic"])
def test_weights_inside_graphs_and_at_run_time_scales(proto, name):
    state, where = planned(proto, data=samples(planned(proto)[0].model, free=3))
    state, where = pruned(state, 0.9), asking(where, name)
    sparse, plain = lowered(state, where).model, dense(state, where)
    assert Counter(runtime_ops(sparse)) == Counter(runtime_ops(plain))
    for feeds in samples(state.model, 3, seed=3, free=3).samples:
        for first, second in zip(outputs(sparse, feeds), outputs(plain, feeds), strict=True):
            assert np.array_equal(first, second)


def test_weights_that_were_not_pruned_stay():
    state, where = planned(conv_and_gemm())
    assert not encoded(state, where).report.changed
    state = pruned(state, 0.9, only="w")
    result = encoded(state, where)
    assert [row.name for row in result.report.tables[0].rows] == ["w", "all"]


# -- which format ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sparsity", "best"), [(0.97, "delta"), (0.6, "bitmask"), (0.02, "dense")])
def test_auto_takes_the_smallest_file(sparsity, best):
    state, where = planned(conv_and_gemm())
    state = pruned(state, sparsity)
    sizes = {n: len(serialized(lowered(state, asking(where, n)).model)) for n in FORMATS}
    assert sizes["auto"] == sizes[best] == min(sizes.values())
    notes = {row.note for row in encoded(state, where).report.tables[0].rows[:-1]}
    assert notes == {"stored dense" if best == "dense" else f"stored as {best}"}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", ["bitmask", "delta", "f2f"])
def test_what_the_graph_takes_is_about_as_reckoned(name, count):
    state, where = planned(conv_and_gemm())
    state = pruned(state, 0.9, only="v" if count == 1 else "")
    result = encoded(state, asking(where, name))
    plain = len(serialized(run_passes(state, where, "insert-qdq").model)) - 216 * (32 + 24 * (count == 2))
    content = next(m.value for m in result.report.metrics if m.name == "stored")
    found = len(serialized(result.state.model)) - plain - content
    assert 0.7 < found / (ONCE_BYTES[name] + count * EACH_BYTES[name]) < 1.3


def many_small(layers=10, width=25) -> onnx.ModelProto:
    """Weights of which none alone is worth a graph that decodes it."""
    rng = np.random.default_rng(0)
    names = [f"m{k}" for k in range(layers)]
    nodes = [
        onnx.helper.make_node("MatMul", [before, f"w{k}"], [name], name=name)
        for k, (before, name) in enumerate(zip(["x", *names], names, strict=False))
    ]
    constants = {f"w{k}": rng.standard_normal((width, width)).astype(np.float32) for k in range(layers)}
    return build(nodes, [("x", FLOAT, [1, width])], [(names[-1], FLOAT, [1, width])], constants)


@pytest.mark.parametrize("opset", [12, 17])
def test_small_weights_are_decoded_together(opset):
    proto = many_small()
    proto.opset_import[0].version = opset
    state, where = planned(proto)
    state = pruned(state, 0.7)
    sparse, plain = lowered(state, where).model, dense(state, where)
    assert Counter(runtime_ops(sparse)) == Counter(runtime_ops(plain))
    feeds = samples(state.model, seed=5)[0]
    assert np.array_equal(outputs(sparse, feeds), outputs(plain, feeds))
    assert [n.op_type for n in sparse.graph].count("CumSum") == 1
    assert len(serialized(sparse)) < len(serialized(plain)) - 1000
    alone = encoded(pruned(planned(proto)[0], 0.7, only="w3"), where)
    assert not alone.report.changed


def test_one_array_that_is_too_large_is_decoded_in_parts():
    state, where = planned(many_small(width=200))
    state, where = pruned(state, 0.7), asking(where, "bitmask")
    model = encoded(state, where, largest_mib=1).state.model
    assert [n.op_type for n in model.graph].count("CumSum") == 2
    plain = run_passes(state, where, "insert-qdq").model
    feeds = samples(state.model)[0]
    assert np.array_equal(outputs(model, feeds), outputs(plain, feeds))


def test_the_plan_may_name_a_format_for_one_weight():
    state, where = planned(conv_and_gemm())
    state = pruned(state, 0.9)
    entry = replace(state.plan.tensors["w"], encoding="bitmask")
    state = replace(state, plan=state.plan.with_tensors(entry))
    rows = encoded(state, asking(where, "delta")).report.tables[0].rows
    assert {row.name: row.note for row in rows[:-1]} == {"w": "stored as bitmask", "v": "stored as delta"}


def test_the_table_adds_up():
    state, where = planned(conv_and_gemm())
    state, where = pruned(state, 0.9), asking(where, F2F)
    result = encoded(state, where)
    sizes, zips, parts, quality = result.report.tables
    for table in (sizes, zips, parts):
        for column in range(len(table.columns)):
            assert table.rows[-1].values[column] == sum(row.values[column] for row in table.rows[:-1])
    by_name = dict(zip(sizes.columns, sizes.rows[-1].values, strict=True))
    assert by_name["dense"] == 24 * 216 + 32 * 216
    assert by_name["f2f"] == sum(parts.rows[-1].values)
    assert by_name["order-0 entropy"] < by_name["coded mask"] < by_name["bitmask"] < by_name["f2f"]
    assert [len(row.values) for row in quality.rows] == [11, 11]
    assert all(80 < value <= 100 for row in quality.rows for value in row.values[3:])


# -- limits ------------------------------------------------------------------------------------------------------


def test_what_would_not_fold_falls_back_and_says_so():
    state, where = planned(conv_and_gemm())
    state = pruned(state, 0.9)
    before = run_passes(state, where, "insert-qdq")
    for name in ("f2f", "bitmask", "delta"):
        result = replace(make_pass("sparse-encode"), largest_mib=0).run(before, asking(where, name))
        assert not result.report.changed
        assert {s.tensor for s in result.report.skipped} == {"w", "v"}
        assert all("decoding as" in s.reason and "stored dense" in s.reason for s in result.report.skipped)


def test_memory_of_the_whole_model_is_limited():
    """The second weight no longer fits; 8-bit zeros of 1.1 MiB need about 20 MiB as a bitmask."""
    nodes = [onnx.helper.make_node("MatMul", ["x", "a"], ["m"]), onnx.helper.make_node("MatMul", ["m", "b"], ["y"])]
    rng = np.random.default_rng(0)
    constants = {k: rng.standard_normal((1100, 1100)).astype(np.float32) for k in "ab"}
    proto = build(nodes, [("x", FLOAT, [1, 1100])], [("y", FLOAT, [1, 1100])], constants)
    state, where = planned(proto)
    result = encoded(pruned(state, 0.6), asking(where, "bitmask"), peak_mib=24)
    assert [row.note for row in result.report.tables[0].rows[:-1]] == ["stored as bitmask", "stored dense"]
    assert "MiB in one array, at every load" in result.report.skipped[0].reason


def test_old_operators_cannot_decode():
    state, where = planned(conv_and_gemm())
    before = run_passes(pruned(state, 0.9), where, "insert-qdq")
    before.model.opset_imports[""] = 10
    result = make_pass("sparse-encode").run(before, where)
    assert not result.report.changed
    assert {s.reason for s in result.report.skipped} == {"stored dense: needs opset 11 or newer"}


def test_streams_that_are_not_done_in_time_are_a_bitmask():
    state, where = planned(conv_and_gemm())
    budget = Budget()
    budget.stop()
    result = encoded(pruned(state, 0.9), replace(asking(where, F2F), budget=budget))
    assert {s.reason for s in result.report.skipped} == {"stored as bitmask: its streams were not made in time"}


def test_an_interrupted_run_goes_on_with_the_next_layer(tmp_path, monkeypatch):
    from qcompiler.passes import sparse_encode

    done: list[int] = []
    right = sparse_encode.encrypt

    def counted(numbers, *rest, **options):
        done.append(numbers.size)
        return right(numbers, *rest, **options)

    monkeypatch.setattr(sparse_encode, "encrypt", counted)
    state, where = planned(conv_and_gemm())
    state = pruned(state, 0.9)
    where = replace(asking(where, F2F), checkpoint=Checkpoint(tmp_path / "checkpoint"))
    first = encoded(state, where)
    again = encoded(state, where)
    assert sorted(done) == [24 * 216, 32 * 216]
    assert serialized(first.state.model) == serialized(again.state.model)
    other = encoded(pruned(state, 0.95, seed=1), where)
    assert len(done) == 4
    assert serialized(other.state.model) != serialized(first.state.model)


def test_progress_counts_bits():
    state, where = planned(conv_and_gemm())
    told: list[tuple[str, int, int]] = []
    encoded(pruned(state, 0.9), replace(asking(where, F2F), progress=lambda *at: told.append(at)))
    told = [entry for entry in told if entry[0] == "encoding sparse weights"]
    assert {total for _, _, total in told} == {8 * 216 * (24 + 32)}
    assert len(told) >= 16
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


# -- what is written ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["f2f", "bitmask", "delta"])
def test_the_bytes_of_the_file_are_named(tmp_path, name):
    state, where = planned(conv_and_gemm())
    state, where = pruned(state, 0.9), asking(where, name)
    step = encoded(state, where)
    content = next(m.value for m in step.report.metrics if m.name == "stored")
    files = save_model(lowered(state, where).model, tmp_path / "model.onnx")
    found = stored_bytes(files[0], files[0].stat().st_size)
    assert found[SPARSE] == content + (name == "bitmask")  # and the zero before its values
    assert WHOLE not in found


def test_streams_are_exported(tmp_path):
    state, where = planned(conv_and_gemm())
    state = pruned(state, 0.9)
    model = lowered(state, asking(where, F2F)).model
    assert sorted(streams_of(model)) == ["v", "w"]
    written = export_streams(model, tmp_path)
    assert [p.name for p in written] == ["000-v.f2f", "000-v.matrix.npy", "001-w.f2f", "001-w.matrix.npy"]
    for path, name in ((written[0], "v"), (written[2], "w")):
        stored = from_bytes(path.read_bytes())
        codes = decrypt(stored).view(np.int8).reshape(state.plan.tensors[name].codes.shape)
        assert np.array_equal(codes, state.plan.tensors[name].codes)
        matrix = np.load(path.with_name(path.name.replace(".f2f", ".matrix.npy")))
        assert np.array_equal(matrix, stored.network.matrix())
    assert export_streams(dense(state, where), tmp_path / "none") == []


def test_the_graph_computes_the_planned_codes():
    state, where = planned(conv_and_gemm(odd=True))
    state = pruned(state, 0.7)
    model = lowered(state, asking(where, F2F)).model
    value = next(n for n in model.graph if n.op_type == "DequantizeLinear" and "w_q" in n.inputs[0].name).inputs[0]
    assert constant_of(value) is None
    assert np.array_equal(folded(value), state.plan.tensors["w"].codes)


# -- what goes wrong is noticed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["f2f", "bitmask", "delta"])
def test_a_wrong_value_is_noticed(name, monkeypatch):
    from qcompiler.unpacking import numbering

    right = numbering.Numbering.every_level
    state, where = planned(conv_and_gemm(), bits="W4A8")
    state, where = pruned(state, 0.8, levels=SYMMETRIC), asking(where, name)
    monkeypatch.setattr(numbering.Numbering, "every_level", lambda self: right(self)[::-1].copy())
    with pytest.raises(QCompileError, match=r"'sparse-encode' did not write the plan: weight '\w' of node"):
        lowered(state, where)


def test_levels_without_zero_are_refused():
    state, where = planned(conv_and_gemm(), bits="W4A8")
    odd = np.arange(-15, 16, 2).astype(np.int8)
    entry = replace(state.plan.tensors["w"], levels=odd, codes=None, sparsity=0.5)
    state = replace(state, plan=state.plan.with_tensors(entry))
    with pytest.raises(QCompileError, match="a pruned weight has no level 0"):
        encoded(state, where)


@pytest.mark.parametrize(("field", "value"), [("format", "zip"), ("code", "9-9")])
def test_unknown_names_are_refused(field, value):
    with pytest.raises(UsageError, match=f"there is no {field} '{value}'"):
        replace(make_pass("sparse-encode"), **{field: value})


def test_the_recipe_knows_the_formats():
    assert Recipe().sparse_format == "auto"
    for name in FORMATS:
        Recipe(sparse_format=name)
    with pytest.raises(UsageError, match="sparse_format is 'zip'"):
        Recipe(sparse_format="zip")
