"""Statistics of attention against a plain reference in NumPy, in every form that exporters write."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.model.attention import find_attention
from qcompiler.quant.heads import rotated_back, rotation_matrices
from qcompiler.runtime.attention_moments import capture_attention
from qcompiler.runtime.grams import GramOptions
from tests.attention_nets import HEADS, SIZE, WIDTH, cached, fused, grouped, packed, rotary, separate
from tests.compiling import Fixed, start
from tests.models import run

LENGTH, BATCH = 5, 2
ANGLES = {"rotary": [1.0, 0.3], "gqa": [1.0, 0.6, 0.3, 0.2, 0.1, 0.06, 0.03, 0.02]}


def feeds_of(proto, count=3, batch=BATCH):
    """Return samples for every input of a model; masks hide the last key."""
    found = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        feeds = {"x": rng.standard_normal((batch, LENGTH, WIDTH)).astype(np.float32)}
        names = {i.name for i in proto.graph.input}
        if "memory" in names:
            feeds["memory"] = rng.standard_normal((batch, LENGTH + 2, WIDTH)).astype(np.float32)
        if "mask" in names:
            hidden = np.zeros((batch, 1, 1, LENGTH), bool)
            hidden[..., -1] = True
            kind = next(i for i in proto.graph.input if i.name == "mask").type.tensor_type.elem_type
            feeds["mask"] = hidden if kind == 9 else np.where(hidden, -1e9, 0).astype(np.float32)
        if "lengths" in names:
            feeds["lengths"] = np.full(batch, LENGTH - 1, np.int32)
            feeds["total"] = np.asarray(LENGTH, np.int32)
        found.append(feeds)
    return found


class Reference:
    """Attention with plain loops over heads."""

    def __init__(self, net, feeds, *, causal=False, angles=None, interleaved=False):
        self.net, self.feeds = net, feeds
        x = feeds["x"].astype(np.float64)
        memory = feeds.get("memory", x).astype(np.float64)
        self.memory = memory
        self.query, self.key, self.value = (
            self._project(data, role) for data, role in ((x, "query"), (memory, "key"), (memory, "value"))
        )
        size = self.query.shape[-1]
        self.turns = np.broadcast_to(np.eye(size), (LENGTH, size, size))
        if angles is not None:
            position = np.arange(LENGTH)[:, None] * np.asarray(angles)
            self.turns = rotation_matrices(
                np.cos(position), np.sin(position), size, interleaved=interleaved, halved=True
            )
            self.query, self.key = (np.einsum("lij,bhlj->bhli", self.turns, a) for a in (self.query, self.key))
        repeat = net.heads // net.shared
        scores = self.query @ np.repeat(self.key, repeat, 1).swapaxes(-1, -2) / np.sqrt(size)
        self.hidden = np.zeros(scores.shape[-1], bool)
        if "mask" in feeds:
            self.hidden[-1] = True
            scores[..., -1] = -np.inf
        if causal:
            scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        self.weights = weights / weights.sum(-1, keepdims=True)

    def _project(self, data, role):
        made = data @ self.net.roles[role].T.astype(np.float64) + self.net.bias[role]
        heads = self.net.heads if role == "query" else self.net.shared
        return made.reshape(*data.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    def output(self):
        value = np.repeat(self.value, self.net.heads // self.net.shared, 1)
        joined = (self.weights @ value).transpose(0, 2, 1, 3)
        found = joined.reshape(*joined.shape[:2], -1) @ self.net.roles["output"].T
        return found + self.net.bias.get("output", 0)

    def key_sum(self, head):
        keys = self.key[:, head // (self.net.heads // self.net.shared)][:, ~self.hidden]
        gram = sum(k.T @ k for k in keys)
        return np.mean([r.T @ gram @ r for r in self.turns], axis=0)

    def query_sum(self, head):
        group = self.net.heads // self.net.shared
        grams = [sum(q.T @ q for q in self.query[:, h]) for h in range(head * group, (head + 1) * group)]
        return np.mean([r.T @ np.mean(grams, axis=0) @ r for r in self.turns], axis=0)

    def mixed(self, head):
        """Return A X of all query heads that share a head of values, (vectors, inputs)."""
        group = self.net.heads // self.net.shared
        parts = [self.weights[:, h] @ self.memory for h in range(head * group, (head + 1) * group)]
        return np.concatenate([p.reshape(-1, p.shape[-1]) for p in parts])


FORMS = {
    "separate": (separate, {}),
    "additive mask": (lambda: separate("add"), {}),
    "boolean mask": (lambda: separate("where"), {}),
    "gemm": (lambda: separate(gemm=True), {}),
    "cross": (lambda: separate(cross=True), {}),
    "packed": (packed, {}),
    "interleaved": (lambda: packed("interleaved"), {}),
    "grouped": (grouped, {}),
    "multi-query": (lambda: grouped(1), {}),
    "rotary": (rotary, {"angles": ANGLES["rotary"]}),
    "fused rotary": (lambda: rotary(fused=True), {"angles": ANGLES["rotary"]}),
    "MultiHeadAttention": (lambda: fused("mha"), {}),
    "GroupQueryAttention": (lambda: fused("gqa"), {"causal": True}),
    "GroupQueryAttention, rotating": (lambda: fused("gqa rotating"), {"causal": True, "angles": ANGLES["gqa"]}),
    "GroupQueryAttention, packed": (lambda: fused("gqa packed"), {"causal": True}),
    "Attention, rank 3": (lambda: fused("onnx 3"), {"causal": True}),
    "Attention, rank 4": (lambda: fused("onnx 4"), {}),
}


def captured(proto, feeds, **options):
    model = start(proto).model
    blocks, _ = find_attention(model)
    return capture_attention(model, blocks, Fixed(feeds), GramOptions(**options))[blocks[0].name]


@pytest.mark.parametrize("form", FORMS)
def test_moments_are_those_of_plain_attention(form):
    make, options = FORMS[form]
    proto, net = make()
    every = feeds_of(proto, batch=1 if form in ("gemm", "fused rotary") else BATCH)
    references = [Reference(net, f, **options) for f in every]
    for feeds, reference in zip(every, references, strict=True):
        np.testing.assert_allclose(
            run(proto, feeds)[0].reshape(-1, WIDTH), reference.output().reshape(-1, WIDTH), atol=2e-5
        )
    found = captured(proto, every)
    assert found.reason == ""
    keys = sum(r.key.shape[0] * (~r.hidden).sum() for r in references)
    queries = sum(r.query.shape[0] * LENGTH for r in references)
    for head in range(net.heads):
        expected = sum(r.key_sum(head) for r in references) / keys
        np.testing.assert_allclose(found.keys[head], expected, rtol=1e-4, atol=1e-5)
    for head in range(net.shared):
        expected = sum(r.query_sum(head) for r in references) / queries
        np.testing.assert_allclose(found.queries[head], expected, rtol=1e-4, atol=1e-5)
        mixed = np.concatenate([r.mixed(head) for r in references])
        np.testing.assert_allclose(found.inputs[head], mixed.T @ mixed / len(mixed), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.means[head], mixed.mean(0), rtol=1e-4, atol=1e-5)


def test_a_batch_behind_the_length_is_understood():
    proto, _ = separate()
    every = feeds_of(proto)
    plain = captured(proto, every)
    for node in proto.graph.node:  # the same attention on (length, batch, width)
        if node.name in ("q_heads", "v_heads"):
            node.attribute[0].ints[:] = [1, 2, 0, 3]
        if node.name == "k_heads":
            node.attribute[0].ints[:] = [1, 2, 3, 0]
        if node.name == "back":
            node.attribute[0].ints[:] = [2, 0, 1, 3]
    turned = captured(proto, [{"x": np.ascontiguousarray(f["x"].transpose(1, 0, 2))} for f in every])
    for name in ("keys", "queries", "inputs"):
        np.testing.assert_allclose(getattr(turned, name), getattr(plain, name), rtol=1e-6)


def test_a_cache_leaves_the_values_to_their_plain_inputs():
    proto, _ = cached()
    rng = np.random.default_rng(0)
    past = {n: rng.standard_normal((BATCH, HEADS, 3, SIZE)).astype(np.float32) for n in ("past_key", "past_value")}
    found = captured(proto, [{**f, **past} for f in feeds_of(proto)])
    assert found.reason == "its values come from a cache too, not from its inputs alone"
    assert found.inputs is None
    assert found.keys.shape == found.queries.shape == (HEADS, SIZE, SIZE)
    empty = {n: np.zeros((BATCH, HEADS, 0, SIZE), np.float32) for n in past}
    assert captured(proto, [{**f, **empty} for f in feeds_of(proto)]).reason == ""


def test_too_much_memory_is_a_reason():
    proto, _ = separate()
    found = captured(proto, feeds_of(proto), batch_bytes=100)
    assert found.reason == "moments of its values by head take more than 100 bytes"
    assert found.inputs is None
    assert found.keys is not None


def test_positions_are_drawn_once_and_for_all():
    proto, _ = separate()
    every = feeds_of(proto, batch=1)
    few, same = (captured(proto, every, positions=6) for _ in range(2))
    np.testing.assert_array_equal(few.inputs, same.inputs)
    assert not np.allclose(few.inputs, captured(proto, every, positions=6, seed=1).inputs)
    assert not np.allclose(few.inputs, captured(proto, every).inputs)


# -- rotations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("halved", [True, False])
def test_rotations_turn_pairs_and_leave_the_rest(interleaved, halved):
    angle = np.asarray([[0.3, 1.1], [0.7, -2.0]])
    cos, sin = np.cos(angle), np.sin(angle)
    if not halved:
        repeat = np.repeat if interleaved else lambda a, n, axis: np.concatenate([a] * n, axis)
        cos, sin = (repeat(a, 2, axis=1) for a in (cos, sin))
    found = rotation_matrices(cos, sin, 6, interleaved=interleaved, halved=halved)
    vector = np.arange(1.0, 7.0)
    for position in range(2):
        expected = vector.copy()
        for pair in range(2):
            one, other = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + 2)
            turned = (vector[one] + 1j * vector[other]) * np.exp(1j * angle[position, pair])
            expected[one], expected[other] = turned.real, turned.imag
        np.testing.assert_allclose(found[position] @ vector, expected, rtol=1e-12)


def test_a_moment_rotated_back_is_what_errors_cost_at_every_position():
    rng = np.random.default_rng(0)
    keys, error = rng.standard_normal((7, 4)), rng.standard_normal(4)
    angle = np.arange(6)[:, None] * np.asarray([1.0, 0.1])
    turns = rotation_matrices(np.cos(angle), np.sin(angle), 4, interleaved=False, halved=True)
    gram = rotated_back((keys.T @ keys)[None], turns)[0]
    cost = np.mean([np.square(keys @ (turn @ error)).sum() for turn in turns])
    assert error @ gram @ error == pytest.approx(cost, rel=1e-12)
