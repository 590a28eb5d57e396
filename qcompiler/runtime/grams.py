"""Gram matrices of the inputs of many layers, from runs over samples: im2col at drawn positions, in fixed order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from qcompiler.data import Dataset
from qcompiler.model.edit import constant_of
from qcompiler.model.weights import scales_operands
from qcompiler.quant.gram import Gram, GramAccumulator
from qcompiler.runtime.capture import stream

POSITIONS = 16384
"""Columns per layer, over all samples; where a layer has more, as many are drawn from every sample."""

BATCH_BYTES = 1 << 29
"""Gram matrices of one run over the samples; more layers take several runs."""

MAX_INPUTS = 4608
"""Inputs beyond which no Gram matrix is made: 170 MB each, and minutes to factor."""

Floating = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Window:
    """How a convolution slides; every tuple has one entry per spatial axis.

    Attributes:
        pads: (begin, end) per axis; None where ``auto_pad`` decides by the input's size.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...] | None
    auto_pad: str

    def padding(self, size: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Return (begin, end) of every spatial axis for an input of these sizes."""
        if self.pads is not None:
            return self.pads
        found = []
        for length, kernel, stride, dilation in zip(size, self.kernel, self.strides, self.dilations, strict=True):
            reach = (kernel - 1) * dilation + 1
            total = 0 if self.auto_pad == "VALID" else max((-(-length // stride) - 1) * stride + reach - length, 0)
            less, more = total // 2, total - total // 2
            found.append((less, more) if self.auto_pad != "SAME_LOWER" else (more, less))
        return tuple(found)


@dataclass(frozen=True, slots=True)
class GramLayout:
    """The shape of a layer's Gram matrix and how its columns come about; ``window`` is None for matrix products."""

    groups: int
    inputs: int
    kernel: int
    window: Window | None = None

    @property
    def bytes(self) -> int:
        """Memory of one Gram matrix."""
        return self.groups * self.inputs**2 * 8


def gram_layout(node: ir.Node) -> GramLayout | str:
    """Return how to make a layer's Gram matrix, or why there is none.

    Handled are Conv of any rank, Gemm with plain factors, and MatMul with a constant matrix on the right.
    """
    weight = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    data = node.inputs[0] if node.inputs else None
    if node.op_type not in ("Conv", "Gemm", "MatMul") or weight is None:
        return f"{node.op_type} is no product of its input with a constant on the right"
    if data is None or data.const_value is not None:
        return "its input is a constant"
    if node.op_type == "Conv":
        groups = _integer(node, "group", 1)
        kernel = int(np.prod(weight.shape[2:]))
        layout = GramLayout(groups, weight.shape[1] * kernel, kernel, _window(node, weight.shape[2:]))
    elif weight.ndim != 2:
        return "its constant is no matrix"
    elif scales_operands(node) or _integer(node, "transA", 0):
        return "it scales or transposes its operands"
    else:
        layout = GramLayout(1, weight.shape[1 if _integer(node, "transB", 0) else 0], 1)
    if layout.inputs > MAX_INPUTS:
        return f"{layout.inputs:,} inputs per channel are more than {MAX_INPUTS:,}"
    return layout


def _window(node: ir.Node, kernel: Sequence[int]) -> Window:
    rank, auto = len(kernel), node.attributes.get("auto_pad")
    mode = auto.as_string() if auto is not None else "NOTSET"
    flat = _integers(node, "pads", (0,) * (2 * rank))
    pads = tuple(zip(flat[:rank], flat[rank:], strict=True))
    ones = (1,) * rank
    return Window(
        kernel=tuple(int(k) for k in kernel),
        strides=_integers(node, "strides", ones),
        dilations=_integers(node, "dilations", ones),
        pads=pads if mode == "NOTSET" else None,
        auto_pad=mode,
    )


def _integer(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None else default


def _integers(node: ir.Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    attribute = node.attributes.get(name)
    return tuple(attribute.as_ints()) if attribute is not None else default


def input_columns(layout: GramLayout, data: Floating, limit: int, seed: Sequence[int]) -> Floating:
    """Return what a layer's weights are multiplied with, shape (groups, positions, inputs).

    Args:
        layout: of the layer.
        data: its input: (batch, channels, *spatial) of a convolution, (..., inputs) of a matrix product.
        limit: positions at most; more are thinned out by drawing without replacement.
        seed: of the draw.
    """
    if layout.window is None:
        rows = data.reshape(-1, layout.inputs)
        return rows[_drawn(len(rows), limit, seed)][None]
    window = layout.window
    rank = len(window.kernel)
    padded = np.pad(data, ((0, 0), (0, 0), *window.padding(data.shape[2:])))
    reach = tuple((k - 1) * d + 1 for k, d in zip(window.kernel, window.dilations, strict=True))
    every = sliding_window_view(padded, reach, axis=tuple(range(2, 2 + rank)))
    steps = (*(slice(None, None, s) for s in window.strides), *(slice(None, None, d) for d in window.dilations))
    view = np.moveaxis(every[(slice(None), slice(None), *steps)], 1, 1 + rank)
    chosen = np.unravel_index(_drawn(int(np.prod(view.shape[: 1 + rank])), limit, seed), view.shape[: 1 + rank])
    columns = view[chosen].reshape(len(chosen[0]), layout.groups, layout.inputs)
    return np.moveaxis(columns, 0, 1)


def _drawn(total: int, limit: int, seed: Sequence[int]) -> NDArray[np.int64]:
    """Return which of so many positions count, in order."""
    if total <= limit:
        return np.arange(total)
    return np.sort(np.random.default_rng(list(seed)).choice(total, limit, replace=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class GramOptions:
    """How Gram matrices are captured.

    Attributes:
        threads: of the session.
        positions: columns per layer over all samples.
        seed: of the positions drawn.
        batch_bytes: Gram matrices of one run over the samples.
        progress: called as ``progress(done, total)`` after every sample of every run.
    """

    threads: int = 1
    positions: int = POSITIONS
    seed: int = 0
    batch_bytes: int = BATCH_BYTES
    progress: Callable[[int, int], None] | None = None


def capture_grams(
    model: ir.Model, layouts: dict[str, GramLayout], samples: Dataset, options: GramOptions
) -> dict[str, Gram]:
    """Return the Gram matrix of every named node of a model's main graph.

    Args:
        model: runs over the samples.
        layouts: node name -> ``gram_layout`` of the node.
        samples: at least one.
        options: limits and seed.

    Raises:
        DataError: the model does not run on a sample.
    """
    inputs = {
        n.name or "": n.inputs[0].name or "" for n in model.graph if n.name in layouts and n.inputs[0] is not None
    }
    limit = max(options.positions // len(samples), 1)
    found: dict[str, Gram] = {}
    batches = list(_batches({n: layouts[n] for n in inputs}, options.batch_bytes))
    for number, names in enumerate(batches):
        keys = {n: (inputs[n], layouts[n]) for n in names}  # queries, keys and values read the same
        sums = {key: GramAccumulator(key[1].groups, key[1].inputs) for key in keys.values()}
        values = list(dict.fromkeys(inputs[n] for n in names))
        for index, captured in enumerate(stream(model, values, samples, threads=options.threads)):
            for (value, layout), total in sums.items():
                total.add(input_columns(layout, np.asarray(captured[value]), limit, (options.seed, index)))
            if options.progress is not None:
                options.progress(number * len(samples) + index + 1, len(batches) * len(samples))
        results = {key: total.result() for key, total in sums.items()}
        found.update({name: results[keys[name]] for name in names})
    return found


def _batches(layouts: dict[str, GramLayout], limit: int) -> Iterator[list[str]]:
    """Yield names in order, as many at a time as fit."""
    batch: list[str] = []
    used = 0
    for name, layout in layouts.items():
        if batch and used + layout.bytes > limit:
            yield batch
            batch, used = [], 0
        batch.append(name)
        used += layout.bytes
    if batch:
        yield batch
