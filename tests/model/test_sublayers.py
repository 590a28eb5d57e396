"""Weights by the sublayer they are in, in encoders, decoders and both at once."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.mixed_precision.by_sublayer import sublayer_table
from qcompiler.model.sublayers import sublayers
from qcompiler.quant.allocation import Item, allocation_of
from qcompiler.quant.frontier import BitSearch
from tests.attention_nets import HEADS, WIDTH, Net, separate
from tests.compiling import start
from tests.models import conv_net


def attention(net, data, source, name):
    query = net.split_heads(net.linear(data, f"{name}.query", WIDTH), f"{name}_q", HEADS)
    key = net.split_heads(net.linear(source, f"{name}.key", WIDTH), f"{name}_k", HEADS, (0, 2, 3, 1))
    value = net.split_heads(net.linear(source, f"{name}.value", WIDTH), f"{name}_v", HEADS)
    scores = net.add("MatMul", [query, key], f"{name}_scores")
    weights = net.add("Softmax", [scores], f"{name}_softmax", axis=-1)
    mixed = net.add("Transpose", [net.add("MatMul", [weights, value], f"{name}_mixed")], f"{name}_t", perm=[0, 2, 1, 3])
    joined = net.add("Reshape", [mixed, net.ints(0, 0, WIDTH)], f"{name}_joined")
    return net.add("Add", [data, net.linear(joined, f"{name}.output", WIDTH)], f"{name}_sum")


def feed_forward(net, data, name, function="Relu"):
    inner = net.add(function, [net.linear(data, f"{name}.inner", WIDTH)], f"{name}_function")
    return net.add("Add", [data, net.linear(inner, f"{name}.outer", WIDTH)], f"{name}_sum")


def normal(net, data, name):
    ones, zeros = (
        net.constant(f"{name}.s", np.ones(WIDTH, np.float32)),
        net.constant(f"{name}.b", np.zeros(WIDTH, np.float32)),
    )
    return net.add("LayerNormalization", [data, ones, zeros], name, axis=-1)


def translator():
    """Encoder and decoder in one graph, one table for both and for the output."""
    net = Net()
    net.inputs += [("ids", 7, ["batch", "source"])]
    table = net.constant("table", net.drawn(20, WIDTH))
    memory = attention(net, *[net.add("Gather", [table, "ids"], "looked_up")] * 2, "enc.self")
    memory = normal(net, feed_forward(net, memory, "enc.ffn"), "enc.norm")
    values = normal(net, attention(net, "x", "x", "dec.self"), "dec.norm1")
    values = normal(net, attention(net, values, memory, "dec.cross"), "dec.norm2")
    values = normal(net, feed_forward(net, values, "dec.ffn", "Sigmoid"), "dec.norm3")
    net.constant("extra", net.drawn(WIDTH, WIDTH))
    last = net.add("MatMul", [values, "extra"], "extra_product")
    net.add("Identity", [last], "y")
    return net.model()


def test_an_encoder_and_a_decoder_in_one_graph():
    found = sublayers(start(translator()).model)
    for part, word in (("enc", "encoder"), ("dec", "decoder")):
        for role in ("query", "key", "value", "output"):
            assert found[f"{part}.self.{role}.weight"] == f"{word} self-attention"
        for side in ("inner", "outer"):
            assert found[f"{part}.ffn.{side}.weight"] == f"{word} feed-forward"
    assert {found[f"dec.cross.{role}.weight"] for role in ("query", "output")} == {"decoder cross-attention"}
    assert found["dec.cross.key.weight"] == found["dec.cross.value.weight"] == "decoder cross-attention"
    assert found["table"] == "encoder embedding"
    assert found["extra"] == "decoder other"


def test_without_attention_across_sequences_there_is_no_encoder():
    found = sublayers(start(separate()[0]).model)
    assert found["query.weight"] == "self-attention"
    assert not any("coder" in kind for kind in found.values())


def test_memory_from_outside_makes_all_of_it_the_decoder():
    found = sublayers(start(separate(cross=True)[0]).model)
    assert found["key.weight"] == "decoder cross-attention"


def test_a_network_without_attention_has_no_sublayers():
    assert sublayers(start(conv_net()).model) == {}


def item(name, weights, losses):
    return Item(name=name, weights=weights, bits=tuple(losses), loss=tuple(losses.values()), packing_bytes=0)


@pytest.fixture
def search():
    items = (
        item("f", 100, {1: 8.0, 2: 4.0, 3: 2.0, 4: 1.0, 8: 0.0}),
        item("q", 10, {2: 0.5, 4: 0.25}),
        item("k", 30, {2: 0.125, 4: 0.0625}),
    )
    return BitSearch(
        items=items, fixed_bytes=0, points=(), chosen=allocation_of(items, [2, 4, 2]), unit="nats", correlation=None
    )


def test_the_table_sums_what_is_predicted_by_sublayer(search):
    table = sublayer_table(search, {"f": "feed-forward", "q": "self-attention", "k": "self-attention"})
    rows = {row.name: dict(zip(table.columns, row.values, strict=True)) for row in table.rows}
    assert list(rows) == ["self-attention", "feed-forward"]
    assert rows["self-attention"]["weights"] == 40
    assert rows["self-attention"]["chosen bits"] == (10 * 4 + 30 * 2) / 40
    assert rows["self-attention"]["predicted loss"] == 0.375
    assert rows["self-attention"]["loss at 2"] == 0.625
    assert rows["self-attention"]["loss at 3"] is None
    assert rows["feed-forward"]["loss at 1"] == 8.0
    assert rows["feed-forward"]["share of weights"] == pytest.approx(100 / 140, abs=1e-4)
    assert table.unit == "nats"


def test_weights_of_no_known_sublayer_come_last(search):
    table = sublayer_table(search, {"q": "decoder cross-attention", "f": "encoder feed-forward", "k": "decoder other"})
    assert [row.name for row in table.rows] == ["encoder feed-forward", "decoder cross-attention", "decoder other"]
