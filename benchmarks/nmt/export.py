"""The translation network as ONNX files: the encoder, the decoder with its caches, and both as one graph to compile.

Both attentions of the decoder have one form: keys and values of what is new (the tokens, or the encoder's output) are
projected and joined to those of before, which come in and go out. For the first token the encoder's whole output is
new; from then on an empty one is given, so that it is projected once a sentence and the graph needs no branch. Every
table and weight is stored once a file; the projection to the vocabulary multiplies by the rows of the table itself.

The graph to compile reads a sentence and its translation and gives the probabilities of every token. All its values
are named as in the two files, so that what is decided on it, bits shared between encoder and decoder among that, holds
for them too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.nmt.corpus import PAD
from benchmarks.nmt.network import Shape, Translator, frequencies
from benchmarks.readers import Array

OPSET = 17
TABLE = "table"
MASKED = -1e9
ENCODER, DECODER, WHOLE = "encoder.onnx", "decoder.onnx", "whole.onnx"
CACHES = ("self_key", "self_value", "cross_key", "cross_value")


def cache_names(layers: int) -> list[str]:
    """Return the names of the caches of all layers, without the ``past_`` or ``present_`` in front."""
    return [f"{kind}_{layer}" for layer in range(layers) for kind in CACHES]


def export(network: Translator, folder: Path) -> tuple[Path, Path, Path]:
    """Write the encoder, the decoder and the whole, and return their files.

    The encoder reads ``source`` int64 (batch, source), padded with 0, and returns ``memory`` float32 (batch, source,
    width). The decoder reads ``tokens`` int64 (batch, new), ``source`` again, of which it needs the padding, ``memory``
    (batch, source, width) or (batch, 0, width) where its keys are in the caches, and the caches ``past_*`` float32
    (batch, heads, before, width / heads). It returns ``logits`` float32 (batch, new, vocabulary) and ``present_*``.
    The whole reads ``source`` and ``tokens`` and returns ``probabilities`` float32 (batch, new, vocabulary), which are
    even behind padding, so that a distance between two models counts no padding.
    """
    weights = {name: value.detach().numpy() for name, value in network.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / ENCODER, folder / DECODER, folder / WHOLE
    for path, build in zip(paths, (_encoder, _decoder, _whole), strict=True):
        model = build(_Builder(network.shape, weights))
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)
    return paths


@dataclass(slots=True)
class _Builder:
    """Collects nodes and constants; every node is named by the value it makes."""

    shape: Shape
    weights: Mapping[str, Array]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)

    def node(self, op_type: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:  # noqa: ANN401 - as in onnx
        """Add a node with one output and return the output's name."""
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, values: Array) -> str:
        """Add a constant, once, and return its name."""
        self.constants.setdefault(name, values)
        return name

    def integers(self, *values: int) -> str:
        """Add a list of numbers and return its name."""
        return self.constant("i" + "_".join(map(str, values)), np.array(values, np.int64))

    def number(self, value: float, name: str) -> str:
        """Add a number and return its name."""
        return self.constant(name, np.array(value, np.float32))

    def dense(self, value: str, name: str) -> str:
        """Add a product with a weight, stored as (inputs, outputs), and a bias."""
        weight = self.constant(f"{name}.weight", np.ascontiguousarray(self.weights[f"{name}.weight"].T))
        bias = self.constant(f"{name}.bias", self.weights[f"{name}.bias"])
        return self.node("Add", [self.node("MatMul", [value, weight], f"{name}/MatMul"), bias], f"{name}/Add")

    def norm(self, value: str, name: str) -> str:
        """Add a layer norm."""
        parts = [self.constant(f"{name}.{part}", self.weights[f"{name}.{part}"]) for part in ("weight", "bias")]
        return self.node("LayerNormalization", [value, *parts], f"{name}/LayerNormalization", axis=-1, epsilon=1e-5)

    def size(self, value: str, axis: int, name: str) -> str:
        """Add the length of an axis, int64 (1,)."""
        return self.node("Shape", [value], name, start=axis, end=axis + 1)

    def embed(self, ids: str, before: str | None) -> str:
        """Add the lookup and the positions behind ``before`` earlier tokens."""
        half = self.shape.width // 2
        table = self.constant(TABLE, self.weights["table.weight"])
        rows = self.node("Gather", [table, ids], f"{ids}/embedding/Gather")
        scaled = self.node("Mul", [rows, self.number(math.sqrt(self.shape.width), "root")], f"{ids}/embedding/Mul")
        places = f"{ids}/positions"
        length = self.size(ids, 1, f"{places}/length")
        zero = self.integers(0)
        end = length if before is None else self.node("Add", [before, length], f"{places}/end")
        flat = [self.node("Squeeze", [v, zero], f"{places}/{n}") for n, v in (("from", before or zero), ("to", end))]
        step = self.constant("one", np.array(1, np.int64))
        counted = self.node("Range", [*flat, step], f"{places}/Range")
        column = self.node("Unsqueeze", [counted, self.integers(1)], f"{places}/column")
        angles = self.node(
            "Mul",
            [
                self.node("Cast", [column], f"{places}/Cast", to=TensorProto.FLOAT),
                self.constant("frequencies", frequencies(2 * half).numpy()),
            ],
            f"{places}/angles",
        )
        waves = [self.node(op, [angles], f"{places}/{op}") for op in ("Sin", "Cos")]
        encoded = self.node("Concat", waves, f"{places}/Concat", axis=1)
        return self.node("Add", [scaled, encoded], f"{ids}/embedding/Add")

    def padding(self, source: str) -> str:
        """Add what is added to the scores of padding, (batch, 1, 1, source)."""
        empty = self.node("Equal", [source, self.constant("pad", np.array(PAD, np.int64))], "padding/Equal")
        values = [self.number(MASKED, "masked"), self.number(0.0, "kept")]
        mask = self.node("Where", [empty, *values], "padding/Where")
        return self.node("Unsqueeze", [mask, self.integers(1, 2)], "padding/Unsqueeze")

    def causal(self) -> str:
        """Add what is added to the scores of later tokens, (new, before + new)."""
        last = self.node("Unsqueeze", ["tokens/positions/Range", self.integers(1)], "causal/rows")
        end = "tokens/positions/to"
        zero, one = self.constant("zero", np.array(0, np.int64)), self.constant("one", np.array(1, np.int64))
        columns = self.node("Range", [zero, end, one], "causal/columns")
        later = self.node("Less", [last, columns], "causal/Less")
        return self.node("Where", [later, self.number(MASKED, "masked"), self.number(0.0, "kept")], "causal/Where")

    def split(self, value: str, name: str) -> str:
        """Add the split into heads, (batch, heads, length, width / heads)."""
        heads = self.shape.heads
        shape = self.integers(0, -1, heads, self.shape.width // heads)
        parts = self.node("Reshape", [value, shape], f"{name}/Reshape")
        return self.node("Transpose", [parts], f"{name}/Transpose", perm=[0, 2, 1, 3])

    def attention(self, values: str, memory: str, mask: str, name: str, caches: tuple[str, str] | None = None) -> str:
        """Add an attention; with caches, its keys and values are joined to those of before."""
        query, key, value = (
            self.split(self.dense(read, f"{name}.{part}"), f"{name}.{part}")
            for part, read in (("query", values), ("key", memory), ("value", memory))
        )
        if caches is not None:
            key, value = (
                self.node("Concat", [f"past_{cache}", new], f"present_{cache}", axis=2)
                for cache, new in zip(caches, (key, value), strict=True)
            )
        turned = self.node("Transpose", [key], f"{name}/keys", perm=[0, 1, 3, 2])
        scores = self.node("MatMul", [query, turned], f"{name}/scores")
        root = self.number(math.sqrt(self.shape.width / self.shape.heads), "head_root")
        masked = self.node("Add", [self.node("Div", [scores, root], f"{name}/Div"), mask], f"{name}/masked")
        weights = self.node("Softmax", [masked], f"{name}/Softmax", axis=-1)
        mixed = self.node("MatMul", [weights, value], f"{name}/mixed")
        joined = self.node("Transpose", [mixed], f"{name}/joined", perm=[0, 2, 1, 3])
        flat = self.node("Reshape", [joined, self.integers(0, -1, self.shape.width)], f"{name}/flat")
        return self.dense(flat, f"{name}.output")

    def feed_forward(self, values: str, name: str) -> str:
        """Add a feed-forward sublayer with its norm and the sum around it."""
        inner = self.dense(self.norm(values, f"{name}.feed_norm"), f"{name}.feed_forward.inner")
        outer = self.dense(self.node("Relu", [inner], f"{name}.feed_forward/Relu"), f"{name}.feed_forward.outer")
        return self.node("Add", [values, outer], f"{name}.feed_forward/sum")

    def model(
        self, name: str, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        """Return the model of everything that was added."""
        constants = [numpy_helper.from_array(values, key) for key, values in self.constants.items()]
        graph = helper.make_graph(self.nodes, name, inputs, outputs, constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def _encoder(builder: _Builder) -> onnx.ModelProto:
    shape = builder.shape
    _encode(builder, builder.padding("source"))
    memory = helper.make_tensor_value_info("memory", TensorProto.FLOAT, ["batch", "source", shape.width])
    return builder.model("encoder", [_ids("source")], [memory])


def _decoder(builder: _Builder) -> onnx.ModelProto:
    shape = builder.shape
    before = builder.size("past_self_key_0", 2, "before")
    _decode(builder, builder.padding("source"), before)
    memory = helper.make_tensor_value_info("memory", TensorProto.FLOAT, ["batch", "memory", shape.width])
    inputs = [_ids("tokens"), _ids("source"), memory, *_caches(shape, "past", "before")]
    return builder.model("decoder", inputs, [_scores(shape, "logits"), *_caches(shape, "present", "after")])


def _whole(builder: _Builder) -> onnx.ModelProto:
    padding = builder.padding("source")
    _encode(builder, padding)
    _decode(builder, padding, None)
    empty = builder.node("Equal", ["tokens", builder.constant("pad", np.array(PAD, np.int64))], "tokens/Equal")
    column = builder.node("Unsqueeze", [empty, builder.integers(-1)], "tokens/column")
    known = builder.node("Where", [column, builder.number(0.0, "kept"), "logits"], "tokens/Where")
    builder.node("Softmax", [known], "probabilities", axis=-1)
    inputs, outputs = [_ids("source"), _ids("tokens")], [_scores(builder.shape, "probabilities")]
    return builder.model("translator", inputs, outputs)


def _encode(builder: _Builder, mask: str) -> None:
    """Add everything from ``source`` to ``memory``."""
    values = builder.embed("source", None)
    for layer in range(builder.shape.layers):
        name = f"encoder.{layer}"
        normal = builder.norm(values, f"{name}.self_norm")
        found = builder.attention(normal, normal, mask, f"{name}.self_attention")
        values = builder.node("Add", [values, found], f"{name}.self_attention/sum")
        values = builder.feed_forward(values, name)
    builder.node("Identity", [builder.norm(values, "encoder_norm")], "memory")


def _decode(builder: _Builder, padding: str, before: str | None) -> None:
    """Add everything from ``tokens`` and ``memory`` to ``logits``; with caches where there are tokens ``before``."""
    shape = builder.shape
    values = builder.embed("tokens", before)
    causal = builder.causal()
    for layer in range(shape.layers):
        name = f"decoder.{layer}"
        own, cross = (
            (f"{kind}_key_{layer}", f"{kind}_value_{layer}") if before else None for kind in ("self", "cross")
        )
        normal = builder.norm(values, f"{name}.self_norm")
        found = builder.attention(normal, normal, causal, f"{name}.self_attention", own)
        values = builder.node("Add", [values, found], f"{name}.self_attention/sum")
        normal = builder.norm(values, f"{name}.cross_norm")
        found = builder.attention(normal, "memory", padding, f"{name}.cross_attention", cross)
        values = builder.node("Add", [values, found], f"{name}.cross_attention/sum")
        values = builder.feed_forward(values, name)
    rows = builder.node(
        "Reshape", [builder.norm(values, "decoder_norm"), builder.integers(-1, shape.width)], "projection/rows"
    )
    flat = builder.node("Gemm", [rows, TABLE], "projection/Gemm", transB=1)
    sizes = [builder.size("tokens", 0, "projection/batch"), builder.size("tokens", 1, "projection/new")]
    whole = builder.node("Concat", [*sizes, builder.integers(shape.vocabulary)], "projection/shape", axis=0)
    builder.node("Reshape", [flat, whole], "logits")


def _ids(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", name])


def _scores(shape: Shape, name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "tokens", shape.vocabulary])


def _caches(shape: Shape, prefix: str, length: str) -> list[onnx.ValueInfoProto]:
    found = []
    for name in cache_names(shape.layers):
        sizes: list[str | int | None] = [
            "batch",
            shape.heads,
            f"{name[:-2].rpartition('_')[0]}_{length}",
            shape.width // shape.heads,
        ]
        found.append(helper.make_tensor_value_info(f"{prefix}_{name}", TensorProto.FLOAT, sizes))
    return found
