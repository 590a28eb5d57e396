"""Small attention in the forms that exporters write, with the weights by role to compare with."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.models import FLOAT

WIDTH, HEADS, SIZE = 12, 4, 3


@dataclass(eq=False)
class Net:
    """A model under construction: ``x`` (batch, length, 12) -> ``y``, and perhaps ``memory`` of the same width.

    ``roles`` has the weights W of each role as (outputs, inputs), and ``bias`` their biases, as attention sees them.
    """

    seed: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    inputs: list[tuple[str, int, list[int | str]]] = field(default_factory=list)
    roles: dict[str, np.ndarray] = field(default_factory=dict)
    bias: dict[str, np.ndarray] = field(default_factory=dict)
    heads: int = HEADS
    shared: int = HEADS
    opset: int = 17

    def drawn(self, *shape: int) -> np.ndarray:
        self.seed += 1
        return (np.random.default_rng(self.seed).standard_normal(shape) * 0.5).astype(np.float32)

    def add(self, op_type: str, inputs: list[str], name: str, domain: str = "", outputs=None, **attributes) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, outputs or [name], name=name, domain=domain, **attributes))
        return name

    def constant(self, name: str, array) -> str:
        self.constants[name] = np.asarray(array)
        return name

    def linear(self, data: str, name: str, outputs: int, *, role: str = "", gemm: bool = False) -> str:
        """Add a product with a weight, and a bias; remember them under a role."""
        weight, bias = self.drawn(outputs, WIDTH), self.drawn(outputs)
        if role:
            self.roles[role], self.bias[role] = weight, bias
        self.constant(f"{name}.bias", bias)
        if gemm:
            self.constant(f"{name}.weight", weight)
            return self.add("Gemm", [data, f"{name}.weight", f"{name}.bias"], f"{name}_gemm", transB=1)
        self.constant(f"{name}.weight", np.ascontiguousarray(weight.T))
        product = self.add("MatMul", [data, f"{name}.weight"], f"{name}_product")
        return self.add("Add", [f"{name}.bias", product], f"{name}_out")

    def split_heads(self, value: str, name: str, heads: int, perm=(0, 2, 1, 3)) -> str:
        """Reshape to heads with a computed shape, as exporters do, and transpose."""
        shape = self.add("Shape", [value], f"{name}_shape")
        first = self.add("Slice", [shape, self.ints(0), self.ints(2)], f"{name}_first")
        whole = self.add("Concat", [first, self.ints(-1), self.ints(SIZE)], f"{name}_whole", axis=0)
        cut = self.add("Reshape", [value, whole], f"{name}_cut")
        return self.add("Transpose", [cut], f"{name}_heads", perm=list(perm))

    def ints(self, *values: int) -> str:
        name = "ints_" + "_".join(str(v).replace("-", "m") for v in values)
        return self.constant(name, np.asarray(values, np.int64))

    def floats(self, value: float) -> str:
        return self.constant(f"float_{value}".replace(".", "_"), np.asarray(value, np.float32))

    def core(self, query: str, key: str, value: str, *, mask: str = "", scale: bool = True) -> str:
        """Add softmax(Q K^T) V; the key is transposed already."""
        scores = self.add("MatMul", [query, key], "scores")
        if scale:
            scores = self.add("Div", [scores, self.floats(SIZE**0.5)], "scaled")
        if mask == "add":
            scores = self.add("Add", [scores, "mask"], "masked")
        if mask == "where":
            scores = self.add("Where", ["mask", self.floats(-1e9), scores], "masked")
        weights = self.add("Softmax", [scores], "softmax", axis=-1)
        return self.add("MatMul", [weights, value], "context")

    def close(self, context: str, *, merged: bool = False) -> onnx.ModelProto:
        """Join the heads, add the output projection and return the model."""
        if not merged:
            back = self.add("Transpose", [context], "back", perm=[0, 2, 1, 3])
            context = self.add("Reshape", [back, self.ints(0, 0, WIDTH)], "joined")
        self.add("Identity", [self.linear(context, "output", WIDTH, role="output")], "y")
        return self.model()

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "attention",
            [helper.make_tensor_value_info(*i) for i in (("x", FLOAT, ["batch", "length", WIDTH]), *self.inputs)],
            [helper.make_tensor_value_info("y", FLOAT, None)],
            [numpy_helper.from_array(a, n) for n, a in self.constants.items()],
        )
        domains = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=domains, ir_version=10, producer_name="tests")


def separate(mask: str = "", *, gemm: bool = False, cross: bool = False) -> tuple[onnx.ModelProto, Net]:
    """Three projections, a computed shape, heads transposed; perhaps keys of another value."""
    net = Net()
    source = "x"
    if cross:
        net.inputs.append(("memory", FLOAT, ["batch", "other", WIDTH]))
        source = "memory"
    if mask:
        kind = FLOAT if mask == "add" else onnx.TensorProto.BOOL
        net.inputs.append(("mask", kind, ["batch", 1, 1, "keys"]))
    if gemm:
        return _flat(net)
    query = net.split_heads(net.linear("x", "query", WIDTH, role="query"), "q", HEADS)
    key = net.split_heads(net.linear(source, "key", WIDTH, role="key"), "k", HEADS, (0, 2, 3, 1))
    value = net.split_heads(net.linear(source, "value", WIDTH, role="value"), "v", HEADS)
    return net.close(net.core(query, key, value, mask=mask)), net


def _flat(net: Net) -> tuple[onnx.ModelProto, Net]:
    """Gemm on flattened tokens, and heads folded into the batch (one sentence)."""
    flat = net.add("Reshape", ["x", net.ints(-1, WIDTH)], "flat")
    parts = {}
    for role in ("query", "key", "value"):
        made = net.linear(flat, role, WIDTH, role=role, gemm=True)
        cut = net.add("Reshape", [made, net.ints(-1, HEADS, SIZE)], f"{role}_cut")
        parts[role] = net.add("Transpose", [cut], f"{role}_heads", perm=[1, 2, 0] if role == "key" else [1, 0, 2])
    context = net.core(parts["query"], parts["key"], parts["value"])
    back = net.add("Transpose", [context], "back", perm=[1, 0, 2])
    joined = net.add("Reshape", [back, net.ints(-1, WIDTH)], "joined")
    net.add("Identity", [net.linear(joined, "output", WIDTH, role="output", gemm=True)], "y")
    return net.model(), net


def _packed_weights(net: Net, order: np.ndarray, name: str = "packed") -> None:
    """Remember the roles of a packed projection, whose rows are [query, key, value] in some order."""
    weight, bias = net.constants[f"{name}.weight"].T, net.constants[f"{name}.bias"]
    for number, role in enumerate(("query", "key", "value")):
        net.roles[role], net.bias[role] = weight[order[number]], bias[order[number]]


def packed(form: str = "split") -> tuple[onnx.ModelProto, Net]:
    """One projection for all three: cut by Split, by Slice, by Gather of an axis, or interleaved head by head."""
    net = Net()
    made = net.linear("x", "packed", 3 * WIDTH)
    names = ["q", "k", "v"]
    order = np.arange(3 * WIDTH).reshape(3, WIDTH)
    if form in ("split", "slice"):
        if form == "split":
            net.add("Split", [made, net.ints(WIDTH, WIDTH, WIDTH)], "split", outputs=names, axis=-1)
        for number, name in enumerate(names if form == "slice" else []):
            ends = net.ints(WIDTH * (number + 1)) if number < 2 else net.ints(2**62)
            net.add("Slice", [made, net.ints(WIDTH * number), ends, net.ints(-1)], name)
        query, value = (net.split_heads(n, f"{n}s", HEADS) for n in ("q", "v"))
        key = net.split_heads("k", "ks", HEADS, (0, 2, 3, 1))
    else:
        shape = (0, 0, 3, HEADS, SIZE) if form == "gather" else (0, 0, HEADS, 3, SIZE)
        if form != "gather":
            order = order.reshape(HEADS, 3, SIZE).transpose(1, 0, 2).reshape(3, WIDTH)
        cut = net.add("Reshape", [made, net.ints(*shape)], "cut")
        perm = [2, 0, 3, 1, 4] if form == "gather" else [3, 0, 2, 1, 4]
        moved = net.add("Transpose", [cut], "moved", perm=perm)
        query, key, value = (
            net.add("Gather", [moved, net.constant(f"number{i}", np.int64(i))], n, axis=0) for i, n in enumerate(names)
        )
        key = net.add("Transpose", [key], "kt", perm=[0, 1, 3, 2])
    model = net.close(net.core(query, key, value))
    _packed_weights(net, order)
    return model, net


def grouped(shared: int = 2) -> tuple[onnx.ModelProto, Net]:
    """Fewer heads of keys and values, repeated by Unsqueeze, Expand and Reshape."""
    net = Net(shared=shared)
    query = net.split_heads(net.linear("x", "query", WIDTH, role="query"), "q", HEADS)
    parts = []
    for role in ("key", "value"):
        made = net.split_heads(net.linear("x", role, shared * SIZE, role=role), role, shared)
        more = net.add("Unsqueeze", [made, net.ints(2)], f"{role}_more")
        wide = net.add("Expand", [more, net.ints(1, 1, HEADS // shared, 1, 1)], f"{role}_wide")
        length = net.add("Shape", [made], f"{role}_dims")
        ends = [net.add("Slice", [length, net.ints(a), net.ints(a + 1)], f"{role}_d{a}") for a in (0, 2)]
        shape = net.add("Concat", [ends[0], net.ints(HEADS), ends[1], net.ints(SIZE)], f"{role}_shape2", axis=0)
        parts.append(net.add("Reshape", [wide, shape], f"{role}_all"))
    key = net.add("Transpose", [parts[0]], "kt", perm=[0, 1, 3, 2])
    return net.close(net.core(query, key, parts[1])), net


def rotary(*, fused: bool = False, length: int = 5) -> tuple[onnx.ModelProto, Net]:
    """Rotary embeddings of 4 dimensions a head in front of the product; 3 heads; as operators or as one."""
    net = Net(heads=3, shared=3, opset=23 if fused else 17)
    angles = np.arange(length)[:, None] * np.asarray([1.0, 0.3])
    cos, sin = (f(angles).astype(np.float32) for f in (np.cos, np.sin))
    if not fused:
        cos, sin = (np.concatenate([a, a], 1)[None, None] for a in (cos, sin))
    net.constant("cos", cos if not fused else cos[None])
    net.constant("sin", sin if not fused else sin[None])
    parts = {}
    for role in ("query", "key", "value"):
        made = net.linear("x", role, WIDTH, role=role)
        cut = net.add("Reshape", [made, net.ints(0, 0, 3, 4)], f"{role}_cut")
        heads = net.add("Transpose", [cut], f"{role}_heads", perm=[0, 2, 1, 3])
        parts[role] = heads if role == "value" else _rotated(net, heads, role, fused=fused)
    key = net.add("Transpose", [parts["key"]], "kt", perm=[0, 1, 3, 2])
    return net.close(net.core(parts["query"], key, parts["value"])), net


def _rotated(net: Net, heads: str, role: str, *, fused: bool) -> str:
    if fused:
        return net.add("RotaryEmbedding", [heads, "cos", "sin"], f"{role}_rotated")
    halves = (
        net.add("Slice", [heads, net.ints(0), net.ints(2), net.ints(3)], f"{role}_first"),
        net.add("Slice", [heads, net.ints(2), net.ints(2**62), net.ints(3)], f"{role}_second"),
    )
    negated = net.add("Neg", [halves[1]], f"{role}_negated")
    turned = net.add("Concat", [negated, halves[0]], f"{role}_turned", axis=-1)
    one = net.add("Mul", [heads, "cos"], f"{role}_cos")
    other = net.add("Mul", [turned, "sin"], f"{role}_sin")
    return net.add("Add", [one, other], f"{role}_rotated")


def cached() -> tuple[onnx.ModelProto, Net]:
    """Keys and values of earlier tokens come in as inputs and are put in front."""
    net = Net()
    for name in ("past_key", "past_value"):
        net.inputs.append((name, FLOAT, ["batch", HEADS, "past", SIZE]))
    query = net.split_heads(net.linear("x", "query", WIDTH, role="query"), "q", HEADS)
    made = [net.split_heads(net.linear("x", r, WIDTH, role=r), r[0], HEADS) for r in ("key", "value")]
    both = [
        net.add("Concat", [f"past_{r}", m], f"{r}_both", axis=2) for r, m in zip(("key", "value"), made, strict=True)
    ]
    key = net.add("Transpose", [both[0]], "kt", perm=[0, 1, 3, 2])
    return net.close(net.core(query, key, both[1])), net


def fused(form: str) -> tuple[onnx.ModelProto, Net]:
    """One operator: MultiHeadAttention, GroupQueryAttention (rotating or packed), ONNX Attention of rank 3 or 4."""
    if form == "Attention":
        return _with_weights()
    net = Net(shared=2 if form.startswith("gqa") else HEADS, opset=23 if form.startswith("onnx") else 17)
    if form == "gqa packed":
        net.linear("x", "packed", (HEADS + 4) * 8)
    size = 8 if form.startswith("gqa") else SIZE
    width = {"query": HEADS * size, "key": net.shared * size, "value": net.shared * size}
    if form == "gqa packed":
        data = ["packed_out", "", ""]
        cuts = np.split(np.arange((HEADS + 4) * 8), [HEADS * 8, (HEADS + 2) * 8])
        for role, rows in zip(width, cuts, strict=True):
            net.roles[role] = net.constants["packed.weight"].T[rows]
            net.bias[role] = net.constants["packed.bias"][rows]
    else:
        data = [net.linear("x", r, w, role=r) for r, w in width.items()]
    if form == "mha":
        extra = net.drawn(3 * WIDTH)
        net.constant("extra", extra)
        for part, role in zip(np.split(extra, 3), net.bias, strict=False):
            net.bias[role] = net.bias[role] + part
        net.add("MultiHeadAttention", [*data, "extra"], "attention", "com.microsoft", num_heads=HEADS)
    elif form.startswith("gqa"):
        _group_query(net, data, form)
    elif form == "onnx 3":
        net.add("Attention", data, "attention", q_num_heads=HEADS, kv_num_heads=HEADS, is_causal=1)
    else:
        data = [net.split_heads(d, f"h{i}", HEADS) for i, d in enumerate(data)]
        net.add("Attention", data, "attention")
        return net.close("attention"), net
    return _closed_wide(net, HEADS * size), net


def _group_query(net: Net, data: list[str], form: str) -> None:
    net.inputs.append(("lengths", onnx.TensorProto.INT32, ["batch"]))
    net.inputs.append(("total", onnx.TensorProto.INT32, []))
    inputs = [*data, "", "", "lengths", "total"]
    rotate = 0
    if form == "gqa rotating":
        angles = np.arange(16)[:, None] * np.asarray([1.0, 0.3, 0.1, 0.03])
        net.constant("cos", np.cos(angles).astype(np.float32))
        net.constant("sin", np.sin(angles).astype(np.float32))
        inputs, rotate = [*inputs, "cos", "sin"], 1
    options = {"num_heads": HEADS, "kv_num_heads": 2, "do_rotary": rotate}
    outputs = ["attention", "present_key", "present_value"]
    net.add("GroupQueryAttention", inputs, "attention", "com.microsoft", outputs=outputs, **options)


def _closed_wide(net: Net, width: int) -> onnx.ModelProto:
    """Return the model with an output projection of so many inputs."""
    weight = net.drawn(WIDTH, width)
    net.roles["output"] = weight
    net.constant("output.weight", np.ascontiguousarray(weight.T))
    net.add("MatMul", ["attention", "output.weight"], "y")
    return net.model()


def _with_weights() -> tuple[onnx.ModelProto, Net]:
    net = Net()
    weight, bias = net.drawn(3 * WIDTH, WIDTH), net.drawn(3 * WIDTH)
    net.constant("packed.weight", np.ascontiguousarray(weight.T))
    net.constant("packed.bias", bias)
    net.add("Attention", ["x", "packed.weight", "packed.bias"], "attention", "com.microsoft", num_heads=HEADS)
    model = _closed_wide(net, WIDTH)
    _packed_weights(net, np.arange(3 * WIDTH).reshape(3, WIDTH))
    return model, net
