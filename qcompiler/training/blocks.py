"""Blocks in the order in which they run, and the two streams of values that reach them: of both models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompiler.executor.batching import Axes, Counted, Entangled, row_count
from qcompiler.executor.binding import EMPTY, Binding
from qcompiler.executor.executor import Step, Tensors, TorchExecutor
from qcompiler.model.blocks import COMPUTE, SIZES, block_outputs

OPERATIONS_PER_ELEMENT = 40
"""What an element of a layer's output costs beside its products, in multiply-accumulates: memory, not arithmetic."""


LOOKUPS = frozenset({"Gather"})
"""Rows of a table that no sample reads cannot learn anything, and a step would still move all of them."""


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive steps of the executor.

    Attributes:
        name: of the value that ends it.
        start / stop: its first step, and the one behind its last.
        inputs: the values that are alive before it.
        outputs: those that are alive behind it and were made in it, which follow the float model.
        nodes: names of its steps that are trained: all but look-ups in tables.
    """

    name: str
    start: int
    stop: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: frozenset[str]


def blocks_of(executor: TorchExecutor, wanted: Sequence[str], axes: Axes, layers: int = 1) -> tuple[Block, ...]:
    """Return the blocks between the boundaries of a model, in the order in which they run.

    Where several values are alive at a boundary, such as the scales of a detector, a block has several outputs.

    Args:
        executor: of the float model.
        wanted: values at the end; what no wanted value depends on belongs to no block.
        axes: of the samples; values without one are the same in both models.
        layers: how many layers with weights a block has at least; what is left at the end may have fewer.
    """
    maker = {name: index for index, step in enumerate(executor.steps) for name in step.outputs if name}
    cuts = sorted({maker[name] + 1 for name in (*block_outputs(executor.model), *wanted) if name in maker})
    found: list[Block] = []
    weighted_values = _weighted(executor)
    start = 0
    for stop in cuts:
        alive = executor.live_before(stop, wanted)
        if any(isinstance(axes.get(n), Entangled) for n in alive):
            continue
        outputs = tuple(
            n
            for n in alive
            if start <= maker.get(n, -1) < stop and isinstance(axes.get(n), int) and n in weighted_values
        )
        steps = executor.steps[start:stop]
        weighted = sum(s.op_type in COMPUTE and any(n in executor.parameters for n in s.inputs) for s in steps)
        if not outputs or (weighted < layers and stop != cuts[-1]):
            continue
        name = executor.steps[stop - 1].outputs[0]
        nodes = frozenset(s.name for s in steps if s.op_type not in LOOKUPS)
        found.append(Block(name, start, stop, executor.live_before(start, wanted), outputs, nodes))
        start = stop
    return tuple(found)


def _weighted(executor: TorchExecutor) -> frozenset[str]:
    """Return the values that follow from weights; others, such as masks, are the same in both models."""
    found: set[str] = set()
    for step in executor.steps:
        reads = any(n in found or (n in executor.parameters and executor.parameters[n].dim() > 1) for n in step.inputs)
        if reads and step.op_type not in SIZES:
            found.update(step.outputs)
    return frozenset(found)


class Streams:
    """The values that reach the current block on all rows: in the float model, and in the compressed one.

    Args:
        executor: of the float model.
        axes: where the samples of every value lie.
        feeds: stacked graph inputs.
        wanted: values at the end of the last block.
        at_once: rows in one run.
    """

    def __init__(
        self, executor: TorchExecutor, axes: Axes, feeds: Mapping[str, Tensor], wanted: Sequence[str], at_once: int
    ) -> None:
        self._executor, self._axes, self._wanted, self._at_once = executor, axes, tuple(wanted), at_once
        self.rows = row_count(feeds)
        self.exact: Tensors = dict(feeds)
        self.found: Tensors = dict(feeds)
        self.targets: Tensors = {}

    def enter(self, block: Block) -> None:
        """Compute what a block makes in the float model."""
        self.targets = self._through(block, self.exact, EMPTY)

    def leave(self, block: Block, binding: Binding) -> None:
        """Go on to the next block, which reads what the compressed model makes."""
        self.found = self._through(block, self.found, binding)
        self.exact, self.targets = self.targets, {}

    def bytes_for(self, block: Block) -> int:
        """Return how much memory two more sets of a block's outputs take, judged by a single row."""
        row = self.part(self.exact, torch.zeros(1, dtype=torch.long))
        with torch.no_grad():
            made = self._executor.run(row, block.outputs, start=block.start, stop=block.stop)
        row_bytes: int = sum(v.numel() * v.element_size() for v in made.values())
        return 2 * self.rows * row_bytes

    def keep(self, rows: int) -> None:
        """Forget all rows behind the first few."""
        chosen = torch.arange(rows)
        self.exact, self.found = self.part(self.exact, chosen), self.part(self.found, chosen)
        self.targets = self.part(self.targets, chosen)
        self.rows = rows

    def part(self, values: Mapping[str, Tensor], rows: Tensor) -> Tensors:
        """Return some rows of values; what has no rows is shared."""
        chosen = {}
        for name, value in values.items():
            axis = self._axes.get(name)
            if isinstance(axis, Counted):
                chosen[name] = axis.at(value, self.rows, len(rows))
            else:
                chosen[name] = value.index_select(axis, rows.to(value.device)) if isinstance(axis, int) else value
        return chosen

    def _through(self, block: Block, values: Mapping[str, Tensor], binding: Binding) -> Tensors:
        alive = self._executor.live_before(block.stop, self._wanted)
        parts: list[Tensors] = []
        with torch.no_grad():
            for first in range(0, self.rows, self._at_once):
                rows = torch.arange(first, min(first + self._at_once, self.rows))
                feeds = self.part(values, rows)
                parts.append(self._executor.run(feeds, alive, binding=binding, start=block.start, stop=block.stop))
        joined = {}
        for name in alive:
            axis = self._axes.get(name)
            if isinstance(axis, Counted):
                joined[name] = axis.at(parts[0][name], min(self._at_once, self.rows), self.rows)
            else:
                joined[name] = torch.cat([p[name] for p in parts], axis) if isinstance(axis, int) else parts[0][name]
        return joined


def work_of(executor: TorchExecutor, blocks: Sequence[Block], row: Mapping[str, Tensor]) -> tuple[float, ...]:
    """Return what a run of each block costs on one row, in multiply-accumulates, by the shapes of its values.

    Args:
        executor: of the float model.
        blocks: of its steps.
        row: graph inputs of a single row.
    """
    with torch.no_grad():
        made = executor.run(row, [n for s in executor.steps for n in s.outputs if n])
    found = []
    for block in blocks:
        steps = executor.steps[block.start : block.stop]
        pairs = [(made[n], _products(executor, s, made[n])) for s in steps for n in s.outputs if n]
        found.append(max(1.0, sum(v.numel() * (OPERATIONS_PER_ELEMENT + products) for v, products in pairs)))
    return tuple(found)


def _products(executor: TorchExecutor, step: Step, made: Tensor) -> float:
    """Return how many products an element of a layer's output takes."""
    weight = executor.parameters.get(step.inputs[1]) if len(step.inputs) > 1 else None
    if weight is None or weight.dim() < 2 or step.op_type not in COMPUTE:
        return 0.0
    return int(weight.numel()) / (int(weight.shape[0]) if step.op_type == "Conv" else max(int(made.shape[-1]), 1))
