"""What really runs in integers, read from the runtime's own graph."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from qcompiler.runtime.gate_process import ProfiledNode
from qcompiler.runtime.optimized import (
    RUNTIME_INSERTED,
    Origins,
    integer_share,
    node_macs,
    node_times,
)
from qcompiler.runtime.sessions import open_session
from tests.compiling import compiled, planned, serialized, start
from tests.compiling import lowered as lower
from tests.models import FLOAT, build, conv_net, token_net

make = helper.make_node


def macs(op: str, data: list[int], weight: tuple[int, ...], output: list[int | str], **attributes) -> int:
    node = make(op, ["x", "w"], ["y"], name="node", **attributes)
    proto = build([node], [("x", FLOAT, data)], [("y", FLOAT, output)], {"w": np.zeros(weight, np.float32)})
    return node_macs(next(iter(start(proto).model.graph)))


@pytest.mark.parametrize(
    ("op", "data", "weight", "output", "attributes", "expected"),
    [
        ("Conv", [1, 4, 6, 6], (8, 4, 3, 3), [1, 8, 4, 4], {}, 8 * 4 * 4 * 4 * 9),
        ("Conv", [1, 4, 6, 6], (4, 1, 3, 3), [1, 4, 4, 4], {"group": 4}, 4 * 4 * 4 * 9),
        ("Conv", [1, 4, 6], (8, 4, 3), [1, 8, 4], {}, 8 * 4 * 4 * 3),
        ("Gemm", [2, 5], (5, 3), [2, 3], {}, 2 * 3 * 5),
        ("Gemm", [2, 5], (3, 5), [2, 3], {"transB": 1}, 2 * 3 * 5),
        ("MatMul", [2, 7, 5], (5, 3), [2, 7, 3], {}, 2 * 7 * 3 * 5),
        ("MatMul", [7, 5], (5,), [7], {}, 7 * 5),
        ("ConvTranspose", [1, 4, 3, 3], (4, 8, 2, 2), [1, 8, 4, 4], {}, 4 * 3 * 3 * 8 * 2 * 2),
        ("ConvTranspose", [1, 4, 3, 3], (4, 2, 2, 2), [1, 8, 4, 4], {"group": 4}, 4 * 3 * 3 * 2 * 2 * 2),
    ],
)
def test_multiply_accumulates(op, data, weight, output, attributes, expected):
    assert macs(op, data, weight, output, **attributes) == expected


def test_unknown_dimensions_count_as_one():
    assert macs("Gemm", ["N", 5], (5, 3), ["N", 3]) == 15


def share(proto: onnx.ModelProto, folder, **options):
    state, where = planned(proto, **options)
    path = folder / "optimized.onnx"
    open_session(serialized(lower(state, where).model), optimized_path=path)
    return integer_share(path, state.model)


def test_a_quantized_network_runs_in_integers(tmp_path):
    found = share(conv_net(batch_norm=False), tmp_path)
    assert found.float_nodes == ()
    assert found.integer_nodes == found.compute_nodes == 4
    assert found.integer_macs == found.macs > 0
    assert found.runtime_ops["QLinearConv"] == 3


def test_the_float_network_runs_in_float(tmp_path):
    proto = conv_net(batch_norm=False)
    path = tmp_path / "optimized.onnx"
    open_session(proto.SerializeToString(), optimized_path=path)
    found = integer_share(path, start(proto).model)
    assert found.integer_nodes == 0
    assert found.integer_macs == 0
    assert set(found.float_nodes) == {"conv1", "dw", "pw", "fc"}


def unfolded(proto: onnx.ModelProto, folder, bits: str, limit: str = "") -> tuple[tuple[str, ...], onnx.GraphProto]:
    """Return what a session leaves unpacked that computes no constants larger than ``limit`` bytes when it loads."""
    state, where = planned(proto, bits=bits)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    if limit:
        options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", limit)
    content = serialized(lower(state, where).model)
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return integer_share(folder / "optimized.onnx", state.model).unfolded, onnx.load(folder / "optimized.onnx").graph


@pytest.mark.parametrize("bits", ["W3A8", "W4A8", "W8A8"])
def test_the_runtime_leaves_nothing_packed(tmp_path, bits):
    assert unfolded(conv_net(channels=32), tmp_path, bits)[0] == ()
    assert unfolded(token_net(words=200), tmp_path, bits)[0] == ()


@pytest.mark.parametrize("bits", ["W3A8", "W4A8"])
def test_what_the_runtime_leaves_packed_is_found(tmp_path, bits):
    found, graph = unfolded(conv_net(channels=32), tmp_path, bits, limit="600")
    left = {name for node in graph.node for name in node.output}
    assert found
    assert set(found) <= left
    assert not {n.op_type for n in graph.node if n.output[0] in found} & {"QLinearConv", "QuantizeLinear"}


def test_what_is_kept_in_float_is_named(tmp_path):
    from qcompiler.recipe import MatchRule

    found = share(conv_net(batch_norm=False), tmp_path, rules=(MatchRule(pattern="^pw$", keep_float=True),))
    assert found.float_nodes == ("pw",)
    assert found.integer_nodes == 3


def test_dynamic_products_count_as_integer(tmp_path):
    found = share(token_net(words=600), tmp_path)
    assert "DynamicQuantizeMatMul" in found.runtime_ops
    assert "head" not in found.float_nodes
    assert "lstm" in found.float_nodes


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("conv1", "conv1"),
        ("conv1_quant", "conv1"),
        ("conv1_nchwc", "conv1"),
        ("conv1_fused_nchwc", "conv1"),
        ("conv1_token_12", "conv1"),
        ("fc_integer", "fc"),
        ("fc/MatMulAddFusion", "fc"),
        ("c1_q", "conv1"),
        ("act1", "conv1"),
        ("relu6", "dw"),
        ("a1_dq", "conv1"),
        ("scores_f", "fc"),
        ("add", "add"),
        ("Transpose_17", None),
        ("", None),
    ],
)
def test_names_of_the_runtime_lead_back(name, origin):
    found = Origins(start(conv_net(batch_norm=False)).model).find(name)
    assert (None if found is None else found.name) == origin


def test_the_first_name_that_is_known_counts():
    origins = Origins(start(conv_net(batch_norm=False)).model)
    assert origins.find("Transpose_3", "p_q").name == "pw"
    assert origins.find("dw", "p_q").name == "dw"


def test_times_are_summed_by_original_node():
    proto = conv_net(batch_norm=False)
    model = start(proto).model
    nodes = {
        "original": [("conv1", "Conv", 10.0), ("act1", "Relu", 5.0), ("pool", "GlobalAveragePool", 1.0)],
        "result": [("conv1_quant", "QLinearConv", 4.0), ("image_q", "QuantizeLinear", 2.0), ("xyz", "Transpose", 1.0)],
    }
    rows = {kind: [ProfiledNode(name, op, us, us, 1) for name, op, us in listed] for kind, listed in nodes.items()}
    found = {t.name: t for t in node_times(rows, model, model)}
    assert (found["conv1"].before_us, found["conv1"].after_us) == (15.0, 4.0), "the Relu is part of its layer"
    assert found["pool"].after_us is None
    assert found[RUNTIME_INSERTED].after_us == 3.0
    assert next(iter(found)) == "conv1", "longest first"


def test_compiled_models_report_through_the_same_path(tmp_path):
    model = compiled(conv_net(batch_norm=False))
    assert "QuantizeLinear" in [n.op_type for n in model.graph]
