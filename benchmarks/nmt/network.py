"""The translation network in torch: pre-norm Transformer, 3 + 3 layers, one table for all three embeddings.

Source: Vaswani et al., "Attention Is All You Need" (NeurIPS 2017); norms in front of the sublayers as in Xiong et
al., "On Layer Normalization in the Transformer Architecture" (ICML 2020); the tied table as in Press and Wolf,
"Using the Output Embedding to Improve Language Models" (EACL 2017).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.nmt.corpus import BEGIN, PAD, VOCABULARY


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of the network.

    Attributes:
        width: of the vectors between sublayers.
        heads: of every attention.
        hidden: width inside a feed-forward sublayer.
        layers: of the encoder, and again of the decoder.
        vocabulary: entries of the table.
    """

    width: int = 256
    heads: int = 4
    hidden: int = 512
    layers: int = 3
    vocabulary: int = VOCABULARY


def positions(length: int, width: int) -> Tensor:
    """Return float32 (length, width): sines in the first half of a vector, cosines in the second."""
    angles = torch.arange(length).float()[:, None] * frequencies(width)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def frequencies(width: int) -> Tensor:
    """Return float32 (width / 2,): radians a position, from 1 down to 1 / 10000."""
    return torch.exp(-math.log(10000.0) * torch.arange(width // 2) / (width // 2 - 1))


class Attention(nn.Module):  # type: ignore[misc]
    """Attention of several heads; queries and keys may come from different sequences."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        for name in ("query", "key", "value", "output"):
            self.add_module(name, nn.Linear(shape.width, shape.width))
            nn.init.xavier_uniform_(getattr(self, name).weight)
            nn.init.zeros_(getattr(self, name).bias)

    def _split(self, values: Tensor) -> Tensor:
        return values.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, queries: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """Return (batch, queries, width); ``mask`` is added to the scores."""
        query, key, value = self._split(self.query(queries)), self._split(self.key(memory)), self.value(memory)
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + mask
        return self.output((scores.softmax(-1) @ self._split(value)).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):  # type: ignore[misc]
    """Two products with a ReLU between them."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.inner = nn.Linear(shape.width, shape.hidden)
        self.outer = nn.Linear(shape.hidden, shape.width)
        for layer in (self.inner, self.outer):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, values: Tensor) -> Tensor:
        """Return an array of the shape of ``values``."""
        return self.outer(self.inner(values).relu())


class Layer(nn.Module):  # type: ignore[misc]
    """A layer of the encoder, or of the decoder with attention to the encoder's output."""

    def __init__(self, shape: Shape, dropout: float, decoder: bool) -> None:
        super().__init__()
        self.self_norm, self.self_attention = nn.LayerNorm(shape.width), Attention(shape)
        self.cross_norm = nn.LayerNorm(shape.width) if decoder else None
        self.cross_attention = Attention(shape) if decoder else None
        self.feed_norm, self.feed_forward = nn.LayerNorm(shape.width), FeedForward(shape)
        self.dropout = dropout

    def _drop(self, values: Tensor) -> Tensor:
        return functional.dropout(values, self.dropout, self.training)

    def forward(
        self, values: Tensor, mask: Tensor, memory: Tensor | None = None, memory_mask: Tensor | None = None
    ) -> Tensor:
        """Return an array of the shape of ``values``."""
        normal = self.self_norm(values)
        values = values + self._drop(self.self_attention(normal, normal, mask))
        if self.cross_norm is not None and self.cross_attention is not None:
            values = values + self._drop(self.cross_attention(self.cross_norm(values), memory, memory_mask))
        return values + self._drop(self.feed_forward(self.feed_norm(values)))


class Translator(nn.Module):  # type: ignore[misc]
    """The whole network."""

    def __init__(self, shape: Shape | None = None, dropout: float = 0.1) -> None:
        super().__init__()
        self.shape = shape or Shape()
        self.table = nn.Embedding(self.shape.vocabulary, self.shape.width)
        nn.init.normal_(self.table.weight, std=self.shape.width**-0.5)
        self.encoder = nn.ModuleList(Layer(self.shape, dropout, decoder=False) for _ in range(self.shape.layers))
        self.decoder = nn.ModuleList(Layer(self.shape, dropout, decoder=True) for _ in range(self.shape.layers))
        self.encoder_norm = nn.LayerNorm(self.shape.width)
        self.decoder_norm = nn.LayerNorm(self.shape.width)
        self.dropout = dropout

    def _embed(self, ids: Tensor) -> Tensor:
        values = self.table(ids) * math.sqrt(self.shape.width) + positions(ids.shape[1], self.shape.width)
        return functional.dropout(values, self.dropout, self.training)

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Return the memory (batch, source, width) and the mask of its padding (batch, 1, 1, source)."""
        mask = torch.zeros(source.shape).masked_fill(source == PAD, -1e9)[:, None, None, :]
        values = self._embed(source)
        for layer in self.encoder:
            values = layer(values, mask)
        return self.encoder_norm(values), mask

    def decode(self, target: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
        """Return the logits (batch, target, vocabulary) of the token behind each of ``target``."""
        causal = torch.full((target.shape[1], target.shape[1]), -1e9).triu(1)
        values = self._embed(target)
        for layer in self.decoder:
            values = layer(values, causal, memory, memory_mask)
        return functional.linear(self.decoder_norm(values), self.table.weight)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Return the logits of all tokens of ``target`` (batch, target), each given those before it."""
        return self.decode(shifted(target), *self.encode(source))


def shifted(target: Tensor) -> Tensor:
    """Return what the decoder reads when it is to say ``target``: BEGIN, and all but the last token."""
    return torch.cat([torch.full_like(target[:, :1], BEGIN), target[:, :-1]], dim=1)


def token_loss(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy of the tokens that are no padding, in nats."""
    return functional.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=PAD, label_smoothing=smoothing)
