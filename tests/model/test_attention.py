"""Attention in exported graphs: every form is found, with the right rows for every head, or with the reason why not."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcompiler.attention_problems import output_hessian
from qcompiler.model.attention import find_attention
from qcompiler.model.load import load_model
from tests.attention_nets import HEADS, SIZE, WIDTH, Net, cached, fused, grouped, packed, rotary, separate
from tests.compiling import start
from tests.models import FLOAT

FORMS = {
    "separate": separate,
    "additive mask": lambda: separate("add"),
    "boolean mask": lambda: separate("where"),
    "gemm": lambda: separate(gemm=True),
    "split": lambda: packed("split"),
    "slices": lambda: packed("slice"),
    "gather": lambda: packed("gather"),
    "interleaved": lambda: packed("interleaved"),
    "grouped": grouped,
    "multi-query": lambda: grouped(1),
    "rotary": rotary,
    "fused rotary": lambda: rotary(fused=True),
    "cached": cached,
    "MultiHeadAttention": lambda: fused("mha"),
    "GroupQueryAttention": lambda: fused("gqa"),
    "GroupQueryAttention, rotating": lambda: fused("gqa rotating"),
    "GroupQueryAttention, packed": lambda: fused("gqa packed"),
    "com.microsoft.Attention": lambda: fused("Attention"),
    "Attention, rank 3": lambda: fused("onnx 3"),
    "Attention, rank 4": lambda: fused("onnx 4"),
}


def found(proto):
    return find_attention(start(proto).model)


def only(proto):
    blocks, missed = found(proto)
    assert missed == ()
    assert len(blocks) == 1
    return blocks[0]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_matched_with_the_rows_of_every_head(form):
    proto, net = FORMS[form]()
    block = only(proto)
    assert block.matched, block.reasons
    assert block.heads == net.heads
    assert not block.cross
    stored = {i.name: numpy_helper.to_array(i) for i in proto.graph.initializer}
    for role, projection in block.projections.items():
        weight = stored[projection.weight]
        weight = weight if projection.node.op_type == "Gemm" else weight.T
        if role == "output":
            taken, expected = weight[:, projection.rows.reshape(-1)], net.roles["output"]
            np.testing.assert_array_equal(projection.rows, np.arange(expected.shape[1]).reshape(net.heads, -1))
        else:
            taken, expected = weight[projection.rows.reshape(-1)], net.roles[role]
            count = net.heads if role == "query" else net.shared
            assert projection.rows.shape[0] == count
            np.testing.assert_array_equal(projection.head_of, np.repeat(np.arange(count), net.heads // count))
        np.testing.assert_array_equal(taken, expected)
        assert (projection.rotation is not None) == ("rota" in form.lower() and role in ("query", "key"))
    assert block.query.data == block.key.data == "x" or "gemm" in form


def test_the_scale_is_read():
    assert only(separate()[0]).scale == pytest.approx(SIZE**-0.5)


def test_keys_of_another_value_are_cross_attention():
    block = only(separate(cross=True)[0])
    assert block.cross
    assert block.matched
    assert (block.query.data, block.key.data, block.value.data) == ("x", "memory", "memory")


def test_the_operators_name_the_form():
    forms = {form: only(FORMS[form]()[0]).form for form in ("split", "MultiHeadAttention", "Attention, rank 3")}
    assert list(forms.values()) == ["Softmax", "com.microsoft.MultiHeadAttention", "Attention"]


# -- what is not attention, and half of it --------------------------------------------------------------


def with_node(change):
    """Return separate attention with one thing changed by a function of the net under construction."""
    net = Net()
    parts = {r: net.linear("x", r, WIDTH, role=r) for r in ("query", "key", "value")}
    parts = change(net, parts)
    query = net.split_heads(parts["query"], "q", HEADS)
    key = net.split_heads(parts["key"], "k", HEADS, (0, 2, 3, 1))
    value = net.split_heads(parts["value"], "v", HEADS)
    return net.close(net.core(query, key, value))


def test_an_activation_behind_a_projection_leaves_the_others_matched():
    proto = with_node(lambda net, parts: {**parts, "query": net.add("Tanh", [parts["query"]], "bent")})
    block = only(proto)
    assert not block.matched
    assert block.reasons == ("query: Tanh 'bent' lies between the projection and the attention",)
    assert block.key.rows.shape == (HEADS, SIZE)


def test_a_factor_by_channel_is_no_plain_factor():
    def change(net, parts):
        factor = net.constant("factor", np.arange(1, WIDTH + 1, dtype=np.float32))
        return {**parts, "key": net.add("Mul", [parts["key"], factor], "bent")}

    assert only(with_node(change)).reasons == ("key: Mul 'bent' lies between the projection and the attention",)


def test_a_factor_for_all_channels_is_passed():
    def change(net, parts):
        return {**parts, "query": net.add("Mul", [net.floats(0.7), parts["query"]], "smaller")}

    assert only(with_node(change)).matched


def test_an_output_that_something_else_reads_too_is_a_reason():
    net = Net()
    parts = [net.linear("x", r, WIDTH, role=r) for r in ("query", "key", "value")]
    query, value = (net.split_heads(p, n, HEADS) for p, n in ((parts[0], "q"), (parts[2], "v")))
    context = net.core(query, net.split_heads(parts[1], "k", HEADS, (0, 2, 3, 1)), value)
    net.add("Relu", [context], "spy")
    proto = net.close(context)
    proto.graph.output.append(helper.make_tensor_value_info("spy", FLOAT, None))
    (reason,) = only(proto).reasons
    assert reason == "output: 'context' is read by more than a projection"


@pytest.mark.parametrize("between", [False, True])
def test_factors_by_channel_before_the_output_projection_are_passed(between):
    net, factors = Net(), np.arange(1, WIDTH + 1, dtype=np.float32)
    parts = [net.linear("x", r, WIDTH, role=r) for r in ("query", "key", "value")]
    query, value = (net.split_heads(p, n, HEADS) for p, n in ((parts[0], "q"), (parts[2], "v")))
    context = net.core(query, net.split_heads(parts[1], "k", HEADS, (0, 2, 3, 1)), value)
    back = net.add("Transpose", [context], "back", perm=[0, 2, 1, 3])
    joined = net.add("Reshape", [back, net.ints(0, 0, WIDTH)], "joined")
    smooth = net.add("Mul", [joined, net.constant("factors", factors)], "smooth")
    block = only(net.close(net.add("Relu", [smooth], "bent") if between else smooth, merged=True))
    if between:
        assert block.reasons == ("output: Mul 'smooth' lies between the attention and the projection",)
        return
    assert block.matched
    assert block.output.factors == pytest.approx(factors)
    weight = net.constants[block.output.weight].astype(np.float64) * factors[:, None]
    rows = weight.reshape(HEADS, SIZE, WIDTH)
    assert output_hessian(block) == pytest.approx(rows @ rows.transpose(0, 2, 1), rel=1e-5)


def test_a_classifiers_softmax_is_no_attention():
    net = Net()
    net.add("Softmax", [net.linear("x", "head", 5)], "y", axis=-1)
    assert found(net.model()) == ((), ())


def test_a_product_of_probabilities_without_scores_is_missed_with_a_reason():
    net = Net()
    gate = net.add("Softmax", [net.linear("x", "gate", WIDTH)], "softmax", axis=-1)
    swapped = net.add("Transpose", [net.linear("x", "value", WIDTH)], "swapped", perm=[0, 2, 1])
    net.add("MatMul", [gate, swapped], "y")
    blocks, (missed,) = found(net.model())
    assert blocks == ()
    assert missed.name == "softmax"
    assert missed.reason == "what it normalizes is no product of queries and keys with a factor and a mask"


def test_another_axis_is_missed_with_a_reason():
    proto, _ = separate()
    softmax = next(n for n in proto.graph.node if n.op_type == "Softmax")
    softmax.attribute[0].i = 2
    blocks, (missed,) = found(proto)
    assert blocks == ()
    assert missed.reason == "it normalizes axis 2, not the last one"


def test_keys_that_come_in_from_outside_are_named():
    net = Net()
    for name in ("keys", "values"):
        net.inputs.append((name, TensorProto.FLOAT, ["batch", HEADS, "past", SIZE]))
    query = net.split_heads(net.linear("x", "query", WIDTH, role="query"), "q", HEADS)
    key = net.add("Transpose", ["keys"], "kt", perm=[0, 1, 3, 2])
    block = only(net.close(net.core(query, key, "values")))
    assert block.cross
    assert block.heads == HEADS
    assert block.reasons[0] == "key: 'keys' is an input of the graph or a constant"
    assert not isinstance(block.query, str)


# -- real models ---------------------------------------------------------------------------------------


def test_all_six_blocks_of_minilm_are_matched(shared_data):
    blocks, missed = find_attention(load_model(shared_data / "models/all_minilm_l6_v2.onnx").model)
    assert missed == ()
    assert [b.matched for b in blocks] == [True] * 6
    assert {(b.heads, b.head_size, b.cross) for b in blocks} == {(12, 32, False)}
    assert all(b.scale == pytest.approx(32**-0.5) for b in blocks)


@pytest.mark.parametrize("dynamo", [True, False])
def test_what_torch_exports_is_matched(tmp_path, dynamo):
    torch = pytest.importorskip("torch")

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
            self.packed = torch.nn.Linear(WIDTH, 3 * WIDTH)
            self.out = torch.nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            x = x + self.inner(x, x, x, need_weights=False)[0]
            parts = self.packed(x).chunk(3, dim=-1)
            q, k, v = (p.unflatten(-1, (HEADS, SIZE)).transpose(1, 2) for p in parts)
            mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.out(mixed.transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    path = tmp_path / "torch.onnx"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # exporters warn of their own future
            torch.onnx.export(Block().eval(), (torch.randn(2, 5, WIDTH),), str(path), dynamo=dynamo)
    except ImportError as error:
        pytest.skip(f"this exporter needs more than torch: {error}")
    blocks, missed = find_attention(load_model(path).model)
    assert missed == ()
    assert [b.reasons for b in blocks] == [(), ()]
    assert [b.heads for b in blocks] == [HEADS, HEADS]
