"""Weights below 8 bits: the graph that unpacks them, and that the runtime runs what it runs with 8-bit codes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from qcompiler.codec import bits as codec
from qcompiler.codec.bits import packed_bytes, unpack
from qcompiler.errors import QCompileError
from qcompiler.lowering import weight_codes, weight_of
from qcompiler.model.edit import constant_of
from qcompiler.model.folding import folded
from qcompiler.model.save import save_model
from qcompiler.plan import Role
from qcompiler.quant.levels import uniform_levels
from qcompiler.recipe import MatchRule
from qcompiler.registry import make_pass
from qcompiler.runtime.sessions import open_session
from qcompiler.state import Context, State
from tests.compiling import lowered, outputs, planned, run_passes, runtime_ops, samples, serialized
from tests.golden_text import assert_golden
from tests.models import FLOAT, build, loop_net, token_net
from tests.passes.lowering import rounded_plan, sixteenths
from tests.passes.test_pack_weights import large_branches

make = helper.make_node
UNPACKING = {"Cast", "Concat", "Div", "Gather", "MatMul", "Mod", "Range", "Reshape", "Slice"}


def conv_and_gemm(odd: bool = False) -> onnx.ModelProto:
    """Conv, Relu, Flatten, Gemm; with ``odd``, no width packs the weights into whole groups of bytes."""
    rng = np.random.default_rng(0)
    channels, outs = (25, 31) if odd else (24, 32)
    nodes = [
        make("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        make("Relu", ["c"], ["r"], name="relu"),
        make("Flatten", ["r"], ["f"], name="flatten"),
        make("Gemm", ["f", "v", "d"], ["y"], name="fc", transB=1),
    ]
    constants = {
        "w": rng.standard_normal((channels, channels, 3, 3)).astype(np.float32),
        "b": rng.standard_normal(channels).astype(np.float32),
        "v": rng.standard_normal((outs, channels * 9)).astype(np.float32) / 8,
        "d": rng.standard_normal(outs).astype(np.float32),
    }
    return build(nodes, [("x", FLOAT, [1, channels, 3, 3])], [("y", FLOAT, [1, outs])], constants)


def without_packing(state: State, where: Context) -> ir.Model:
    names = [n for n in where.target.lower_passes() if n != "pack-bits"]
    return run_passes(state, where, *names).model


def both(state: State, where: Context) -> tuple[ir.Model, ir.Model]:
    """Return the lowered model with weights packed, and with plain int8 codes."""
    return lowered(state, where).model, without_packing(state, where)


def streams(model: ir.Model) -> list[int]:
    """Return the sizes of all packed weights."""
    found = (v.const_value for v in model.graph.initializers.values())
    return [t.nbytes for t in found if t is not None and t.dtype is ir.DataType.UINT8 and t.nbytes > 8]


@pytest.mark.parametrize("width", [3, 4])
def test_golden(width):
    nodes = [make("Gather", ["table", "ids"], ["y"], name="embed")]
    constants = {"table": sixteenths(20, 49) + np.float32(0.007)}  # 980 numbers: no whole groups of 3 bytes
    proto = build(nodes, [("ids", onnx.TensorProto.INT64, [3])], [("y", FLOAT, [3, 49])], constants)
    state, where = rounded_plan(proto)
    entry = state.plan.tensors["table"]
    entry = replace(entry, spec=replace(entry.spec, num_bits=width), levels=uniform_levels(width))
    state = replace(state, plan=state.plan.with_tensors(entry))
    assert_golden(f"pack-bits-{width}", run_passes(state, where, "pack-weights", "pack-bits").model)


@pytest.mark.parametrize("odd", [False, True], ids=["whole groups", "filled up"])
@pytest.mark.parametrize("width", range(1, 8))
def test_the_runtime_runs_the_same_kernels_on_the_same_weights(width, odd):
    state, where = planned(conv_and_gemm(odd), bits=f"W{width}A8")
    packed, plain = both(state, where)
    sizes = [t.const_value.size for n, t in state.model.graph.initializers.items() if n in ("w", "v")]
    assert sorted(streams(packed)) == sorted(packed_bytes(n, width) for n in sizes)
    assert Counter(runtime_ops(packed)) == Counter(runtime_ops(plain))
    assert {"QLinearConv", "QGemm"} <= set(runtime_ops(packed))
    for feeds in samples(state.model, 3, seed=5).samples:
        expected = outputs(plain, feeds)
        assert np.array_equal(outputs(packed, feeds), expected)
        assert np.array_equal(outputs(packed, feeds, optimize=False), outputs(plain, feeds, optimize=False))


def test_weights_with_run_time_scales_are_packed():
    state, where = planned(token_net(words=200), bits="W4A8")
    packed, plain = both(state, where)
    assert streams(packed)
    assert "DynamicQuantizeMatMul" in runtime_ops(packed)
    assert Counter(runtime_ops(packed)) == Counter(runtime_ops(plain))
    feeds = samples(state.model, free=3)[0]
    for first, second in zip(outputs(packed, feeds), outputs(plain, feeds), strict=True):
        assert np.array_equal(first, second)


def wider_branches() -> onnx.ModelProto:
    """``large_branches`` with weights that are worth packing."""
    proto = large_branches()
    for attribute in proto.graph.node[0].attribute:
        weight = attribute.g.initializer[0]
        weight.CopyFrom(numpy_helper.from_array(sixteenths(100, 12, seed=int(weight.name[1])), weight.name))
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 100
    return proto


def wider_loop() -> onnx.ModelProto:
    proto = loop_net()
    proto.graph.initializer[2].CopyFrom(numpy_helper.from_array(sixteenths(32, 32), "w"))
    inner = next(a.g for a in proto.graph.node[0].attribute if a.name == "body")
    for info in (proto.graph.input[0], proto.graph.output[0], inner.input[2], inner.output[1]):
        info.type.tensor_type.shape.dim[1].dim_value = 32
    return proto


@pytest.mark.parametrize("width", [3, 4])
@pytest.mark.parametrize("proto", [wider_branches(), wider_loop()], ids=["If", "Loop"])
def test_weights_inside_graphs_are_unpacked_in_the_main_graph(proto, width):
    state, where = planned(proto, bits=f"W{width}A8", data=samples(planned(proto)[0].model))
    packed, plain = both(state, where)
    assert streams(packed)
    assert not UNPACKING & (set(runtime_ops(packed)) - set(runtime_ops(plain)))
    for feeds in samples(state.model, 4, seed=3).samples:
        expected = outputs(plain, feeds)
        assert np.array_equal(outputs(packed, feeds)[0], expected[0])
        assert np.array_equal(outputs(packed, feeds, optimize=False)[0], expected[0])


def test_a_weight_of_several_nodes_is_unpacked_once():
    nodes = [
        make("Conv", ["x", "w"], ["a"], name="first", pads=[1, 1, 1, 1]),
        make("Conv", ["a", "w"], ["y"], name="second", pads=[1, 1, 1, 1]),
    ]
    weight = sixteenths(12, 12, 3, 3)
    proto = build(nodes, [("x", FLOAT, [1, 12, 4, 4])], [("y", FLOAT, [1, 12, 4, 4])], {"w": weight})
    state, where = planned(proto, bits="W4A8")
    packed, plain = both(state, where)
    assert len(streams(packed)) == 1
    feeds = samples(state.model)[0]
    assert np.array_equal(outputs(packed, feeds), outputs(plain, feeds))


def test_equal_tables_are_stored_once():
    state, where = planned(conv_and_gemm(), bits="W4A8")
    tensors = [replace(t, levels=uniform_levels(4)) for t in state.plan.tensors.values() if t.role is Role.WEIGHT]
    same = lowered(replace(state, plan=state.plan.with_tensors(*tensors)), where).model
    assert sum(n.op_type == "Range" for n in same.graph) == 1
    other = replace(tensors[0], levels=np.sort(np.asarray([*range(-120, 120, 16), 127], np.int8)))
    both_tables = lowered(replace(state, plan=state.plan.with_tensors(*tensors, other)), where).model
    assert sum(n.op_type == "Range" for n in both_tables.graph) == 2
    feeds = samples(state.model)[0]
    changed = replace(state, plan=state.plan.with_tensors(*tensors, other))
    assert np.array_equal(outputs(both_tables, feeds), outputs(without_packing(changed, where), feeds))


def test_fewer_levels_than_the_bits_can_number():
    state, where = planned(conv_and_gemm(), bits="W3A8")
    entry = replace(state.plan.tensors["w"], levels=np.asarray([-100, -30, 0, 30, 100], np.int8))
    state = replace(state, plan=state.plan.with_tensors(entry))
    packed, plain = both(state, where)
    assert np.array_equal(outputs(packed, samples(state.model)[0]), outputs(plain, samples(state.model)[0]))


@pytest.mark.parametrize(("width", "limit"), [(1, 250), (3, 450), (4, 250), (7, 450)])
def test_a_tensor_costs_few_bytes_beside_its_numbers(width, limit):
    state, where = planned(conv_and_gemm(), bits=f"W{width}A8")
    one = planned(conv_and_gemm(), bits="W8A8", rules=[MatchRule(pattern="^conv$", num_bits=width)])
    two, plain = lowered(state, where).model, without_packing(state, where)
    first = lowered(*one).model
    numbers = packed_bytes(32 * 216, width) - 32 * 216
    assert len(serialized(two)) - len(serialized(first)) - numbers <= limit
    both_numbers = numbers + packed_bytes(24 * 216, width) - 24 * 216
    assert len(serialized(two)) - len(serialized(plain)) - both_numbers <= 700 + limit


def test_the_stream_holds_the_numbers_of_the_planned_levels():
    state, where = planned(conv_and_gemm(odd=True), bits="W5A8")
    model = lowered(state, where).model
    value = next(n for n in model.graph if n.op_type == "DequantizeLinear" and "w_q" in n.inputs[0].name).inputs[0]
    entry, weight = state.plan.tensors["w"], constant_of(state.model.graph.initializers["w"])
    codes = weight_codes(weight, entry)
    assert np.array_equal(folded(value), codes)
    size = packed_bytes(weight.size, 5)
    stream = next(v for v in model.graph.initializers.values() if v.const_value.nbytes == size)
    numbers = unpack(constant_of(stream), 5, weight.size)
    assert np.array_equal(entry.levels[numbers].reshape(weight.shape), codes)


def small_weight(allocation):
    weight = sixteenths(8, 8, 1, 1)
    proto = build(
        [make("Conv", ["x", "w"], ["y"], name="conv")], [("x", FLOAT, [1, 8, 4, 4])], [("y", FLOAT, [1, 8, 4, 4])],
        {"w": weight},
    )  # fmt: skip
    state, where = planned(proto, bits="W4A8")
    where = replace(where, recipe=replace(where.recipe, allocation=allocation))
    return run_passes(state, where, "insert-qdq"), where


@pytest.mark.parametrize("allocation", ["auto", "limits"])
def test_small_weights_stay_in_whole_bytes_where_the_file_is_to_be_small(allocation):
    before, where = small_weight(allocation)
    result = make_pass("pack-bits").run(before, where)
    assert not result.report.changed
    assert result.state.model is before.model
    assert [(s.tensor, s.reason) for s in result.report.skipped] == [
        ("w", "stored in whole bytes: unpacking takes more bytes than it saves")
    ]


@pytest.mark.parametrize("allocation", ["mixed", "uniform"])
def test_small_weights_take_the_bits_that_were_stated(allocation):
    before, where = small_weight(allocation)
    result = make_pass("pack-bits").run(before, where)
    assert not result.report.skipped
    sizes = [v.const_value.nbytes for v in result.state.model.graph.initializers.values()]
    assert packed_bytes(64, 4) in sizes
    assert 64 not in sizes


def test_old_operators_cannot_unpack():
    state, where = planned(conv_and_gemm(), bits="W4A8")
    before = run_passes(state, where, "insert-qdq")
    before.model.opset_imports[""] = 10
    report = make_pass("pack-bits").run(before, where).report
    assert {s.reason for s in report.skipped} == {"stored in whole bytes: needs opset 11 or newer"}


def test_eight_bits_are_left_alone():
    state, where = planned(conv_and_gemm())
    before = run_passes(state, where, "insert-qdq")
    result = make_pass("pack-bits").run(before, where)
    assert not result.report.changed
    assert not result.report.skipped


def test_numbers_are_packed_when_the_file_is_written(tmp_path, monkeypatch):
    """One tensor at a time, so that a model larger than the memory can be written."""
    from qcompiler.passes import pack_bits

    done: list[int] = []

    def counted(numbers, width):
        done.append(numbers.size)
        return codec.pack(numbers, width)

    monkeypatch.setattr(pack_bits, "pack", counted)
    state, where = planned(conv_and_gemm(), bits="W4A8")
    before = run_passes(state, where, "insert-qdq")
    model = make_pass("pack-bits").run(before, where).state.model
    assert done == []
    save_model(model, tmp_path / "model.onnx")
    assert sorted(done) == [24 * 216, 32 * 216]


def test_streams_in_external_data_run_alike(tmp_path, monkeypatch):
    from qcompiler.model import save

    rng = np.random.default_rng(0)
    weight = rng.standard_normal((160, 160, 3, 3)).astype(np.float32)
    proto = build(
        [make("Conv", ["x", "w"], ["y"], name="conv")], [("x", FLOAT, [1, 160, 4, 4])],
        [("y", FLOAT, [1, 160, 2, 2])], {"w": weight},
    )  # fmt: skip
    state, where = planned(proto, bits="W4A8")
    packed, plain = both(state, where)
    monkeypatch.setattr(save, "EXTERNAL_ABOVE_BYTES", 1000)
    files = save_model(packed, tmp_path / "model.onnx")
    assert [f.name for f in files] == ["model.onnx", "model.onnx.data"]
    assert files[1].stat().st_size == weight.size // 2
    feeds = samples(state.model)[0]
    assert np.array_equal(open_session(files[0]).run(None, feeds), outputs(plain, feeds))


# -- what goes wrong is noticed ------------------------------------------------------------------------------


def flip_a_bit(numbers, width):
    stream = codec.pack(numbers, width)
    stream[len(stream) // 2] ^= 0x10
    return stream


@pytest.mark.parametrize("width", [3, 4])
def test_a_flipped_bit_is_noticed(width, monkeypatch):
    from qcompiler.passes import pack_bits

    monkeypatch.setattr(pack_bits, "pack", flip_a_bit)
    state, where = planned(conv_and_gemm(), bits=f"W{width}A8")
    with pytest.raises(QCompileError, match="'pack-bits' did not write the plan: weight 'w' of node 'conv'"):
        lowered(state, where)


@pytest.mark.parametrize(
    "proto", [conv_and_gemm(), token_net(words=200), wider_branches()], ids=["static", "dynamic", "float"]
)
def test_a_wrong_level_is_noticed(proto, monkeypatch):
    from qcompiler.passes import pack_bits

    right = pack_bits._Writer._table

    def wrong(writer, layout, levels):
        moved = levels.copy()
        moved[-1] += 1
        return right(writer, layout, moved)

    monkeypatch.setattr(pack_bits._Writer, "_table", wrong)
    state, where = planned(proto, bits="W4A8")
    with pytest.raises(QCompileError, match=r"'pack-bits' did not write the plan: weight '.*' of node"):
        lowered(state, where)


def test_codes_that_are_no_levels_are_refused():
    state, where = planned(conv_and_gemm(), bits="W4A8")
    entry = state.plan.tensors["w"]
    codes = np.full(constant_of(state.model.graph.initializers["w"]).shape, 100, np.int8)
    state = replace(state, plan=state.plan.with_tensors(replace(entry, codes=codes)))
    with pytest.raises(QCompileError, match="weight 'w' has a code that is none of its levels"):
        lowered(state, where)


def test_more_levels_than_the_bits_can_number_are_refused():
    state, where = planned(conv_and_gemm(), bits="W2A8")
    entry = replace(state.plan.tensors["w"], levels=uniform_levels(3))
    state = replace(state, plan=state.plan.with_tensors(entry))
    with pytest.raises(QCompileError, match="weight 'w' has 8 levels, more than 2 bits can number"):
        lowered(state, where)


def test_few_bits_without_levels_are_refused():
    state, where = planned(conv_and_gemm(), bits="W4A8")
    state = replace(state, plan=state.plan.with_tensors(replace(state.plan.tensors["w"], levels=None)))
    with pytest.raises(QCompileError, match="weight 'w' is planned in 4 bits without levels"):
        lowered(state, where)


def test_codes_name_their_weight():
    state, where = planned(conv_and_gemm(), bits="W4A8")
    model = run_passes(state, where, "insert-qdq").model
    named = {weight_of(v) for v in model.graph.initializers.values()} - {""}
    assert named == {"w", "v"}
