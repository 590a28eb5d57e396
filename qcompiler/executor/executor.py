"""Runs a float graph in PyTorch, from any step to any step, with gradients and with replaced weights and values."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch

from qcompiler.errors import ModelError, QCompileError
from qcompiler.executor.binding import EMPTY, Binding
from qcompiler.executor.fallback import runtime_kernel
from qcompiler.executor.operator import Kernel, Operator, to_torch
from qcompiler.executor.operators import HOST_INPUTS, native_kernel
from qcompiler.model.edit import constant_of

Tensors = dict[str, torch.Tensor]
OUTSIDE = ""
"""The reader of graph outputs, in ``Binding.readers``."""


@dataclass(frozen=True, slots=True)
class Step:
    """One node of the graph, ready to run.

    Attributes:
        inputs: names of the values it reads, "" where one is absent.
        outputs: names of the values it makes, "" where one is not wanted.
        kernel: what computes it.
        native: it runs in PyTorch and carries gradients.
    """

    name: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    kernel: Kernel
    native: bool


@dataclass(frozen=True, slots=True)
class _Schedule:
    """Which steps to run, and after each of them which values nobody reads any more."""

    steps: tuple[int, ...]
    dropped: tuple[tuple[str, ...], ...]


class TorchExecutor:
    """A float model whose steps run in PyTorch.

    Floating-point tensors live on the device, integers and booleans that come from shapes on the CPU. The same
    inputs give the same outputs, if the number of threads is the same; see ``deterministic``.

    Args:
        model: a float model in normal form, without control flow.
        device: where to compute, as PyTorch names it.

    Attributes:
        steps: the nodes in topological order.
        parameters: floating-point constants by value name; what a ``Binding`` may replace.
        inputs / outputs: names of the graph's inputs and outputs.
        fallbacks: operator -> how many nodes run in ONNX Runtime, where gradients end.

    Raises:
        ModelError: a node holds graphs, or a constant is of a type that PyTorch lacks.
    """

    def __init__(self, model: ir.Model, *, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.model = model
        self.inputs = tuple(v.name or "" for v in model.graph.inputs)
        self.outputs = tuple(v.name or "" for v in model.graph.outputs)
        self.parameters: Tensors = {}
        self._constants: Tensors = {}
        self._read_constants(model.graph)
        self.steps = tuple(self._step(node) for node in model.graph)
        missing = [s.op_type for s in self.steps if not s.native]
        self.fallbacks: Mapping[str, int] = {name: missing.count(name) for name in sorted(set(missing))}
        self._schedules: dict[tuple[tuple[str, ...], int, int], _Schedule] = {}

    def _read_constants(self, graph: ir.Graph) -> None:
        for name, value in graph.initializers.items():
            array = constant_of(value)
            try:
                tensor = None if array is None else to_torch(array, self.device)
            except TypeError:
                raise ModelError(
                    f"constant '{name}' is of type {value.dtype}, which PyTorch lacks; compile with -O1"
                ) from None
            if tensor is not None:
                (self.parameters if tensor.is_floating_point() else self._constants)[name] = tensor

    def _step(self, node: ir.Node) -> Step:
        versions = self.model.opset_imports
        version = versions.get(node.domain, versions.get("ai.onnx", 1) if not node.domain else 1)
        op = Operator(node, version, self.device)
        kernel = native_kernel(op)
        return Step(
            name=node.name or "",
            op_type=node.op_type,
            inputs=tuple("" if v is None else v.name or "" for v in node.inputs),
            outputs=tuple(v.name or "" for v in node.outputs),
            kernel=kernel or runtime_kernel(op),
            native=kernel is not None,
        )

    # -- running ---------------------------------------------------------------------------------------

    def run(
        self,
        feeds: Mapping[str, torch.Tensor],
        outputs: Sequence[str] | None = None,
        *,
        binding: Binding = EMPTY,
        start: int = 0,
        stop: int | None = None,
    ) -> Tensors:
        """Return values of the graph, with gradients where PyTorch records them.

        Args:
            feeds: the graph's inputs; with ``start``, the values that ``live_before(start)`` names.
            outputs: names of what to return; by default the graph's outputs, with ``stop`` what is live there.
            binding: replaced parameters and values.
            start: first step to run.
            stop: the step before which to end. What is returned is then as it was made: a function of the binding
                is applied where a value is read, and so by the run that continues from here.

        Raises:
            ModelError: a node does not run on these inputs.
            RuntimeUnavailable: ONNX Runtime, asked to run a node that PyTorch cannot, refuses it.
            QCompileError: a value is missing in ``feeds``.
        """
        end = len(self.steps) if stop is None else stop
        raw = stop is not None
        wanted = tuple(outputs) if outputs is not None else self.live_before(end) if raw else self.outputs
        schedule = self._schedule(wanted, start, end)
        scope = _Scope(self, dict(feeds), binding)
        for index, dropped in zip(schedule.steps, schedule.dropped, strict=True):
            scope.execute(self.steps[index])
            for name in dropped:
                scope.drop(name)
        return {name: scope.made(name) if raw else scope.read(name, OUTSIDE) for name in wanted}

    def live_before(self, step: int, outputs: Sequence[str] | None = None) -> tuple[str, ...]:
        """Return the values made before a step that it or a later one reads, graph inputs among them.

        Args:
            step: number of the step.
            outputs: what is wanted at the end; by default the graph's outputs.
        """
        wanted = self.outputs if outputs is None else tuple(outputs)
        made = {name for s in self.steps[:step] for name in s.outputs} | set(self.inputs)
        later = [name for i in self._schedule(wanted, step, len(self.steps)).steps for name in self.steps[i].inputs]
        return tuple(dict.fromkeys(n for n in (*later, *wanted) if n in made and n not in self.parameters))

    def readers(self, value: str) -> tuple[int, ...]:
        """Return the numbers of the steps that read a value."""
        return self._readers.get(value, ())

    @functools.cached_property
    def _readers(self) -> dict[str, tuple[int, ...]]:
        found: dict[str, list[int]] = {}
        for index, step in enumerate(self.steps):
            for name in dict.fromkeys(step.inputs):
                found.setdefault(name, []).append(index)
        return {name: tuple(steps) for name, steps in found.items()}

    def _schedule(self, outputs: tuple[str, ...], start: int, stop: int) -> _Schedule:
        key = (outputs, start, stop)
        if key not in self._schedules:
            needed, steps, dropped = set(outputs), list[int](), list[tuple[str, ...]]()
            for index in reversed(range(start, stop)):
                step = self.steps[index]
                if needed.isdisjoint(n for n in step.outputs if n):
                    continue
                last = dict.fromkeys(n for n in step.inputs if n and n not in needed)
                unread = (n for n in step.outputs if n and n not in needed)
                steps.append(index)
                dropped.append((*last, *unread))
                needed.update(step.inputs)
            self._schedules[key] = _Schedule(tuple(reversed(steps)), tuple(reversed(dropped)))
        return self._schedules[key]

    def constant(self, name: str) -> torch.Tensor | None:
        """Return a constant of the graph, None for a value that is computed."""
        found = self.parameters.get(name)
        return self._constants.get(name) if found is None else found


class _Scope:
    """The values of one run: as they were made, and as a binding changes them for their readers."""

    def __init__(self, executor: TorchExecutor, values: Tensors, binding: Binding) -> None:
        self._executor, self._values, self._binding = executor, values, binding
        self._changed: Tensors = {}

    def made(self, name: str) -> torch.Tensor:
        """Return a value as it was made."""
        found = self._values.get(name)
        if found is None:
            found = self._binding.parameters.get(name)
        if found is None:
            found = self._executor.constant(name)
        if found is None:
            raise QCompileError(f"value '{name}' is needed, and neither fed nor made by the steps that run")
        return found

    def read(self, name: str, reader: str) -> torch.Tensor:
        """Return a value as a node sees it."""
        function = self._binding.values.get(name)
        if function is None or not self._binding.is_seen_by(name, reader):
            return self.made(name)
        if name not in self._changed:
            self._changed[name] = function(self.made(name))
        return self._changed[name]

    def drop(self, name: str) -> None:
        """Forget a value that nobody reads any more."""
        self._values.pop(name, None)
        self._changed.pop(name, None)

    def execute(self, step: Step) -> None:
        """Run one step."""
        arguments = [self.read(n, step.name) if n else None for n in step.inputs]
        bias = self._binding.biases.get(step.name)
        if bias is not None:
            arguments = _with_bias(arguments, bias)
        for index, function in self._binding.inputs.get(step.name, {}).items():
            arguments[index] = function(arguments[index])
        if self._executor.device.type != "cpu":
            arguments = _together(arguments, self._executor.device, HOST_INPUTS.get(step.op_type, frozenset()))
        try:
            made = step.kernel(*arguments)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(
                f"{step.op_type} '{step.name}' does not run in PyTorch on these inputs: {reason}"
            ) from error
        results = made if isinstance(made, tuple) else (made,)
        self._values.update((n, v) for n, v in zip(step.outputs, results, strict=False) if n)


def _with_bias(arguments: list[torch.Tensor | None], more: torch.Tensor) -> list[torch.Tensor | None]:
    """Return the arguments of a layer with something added to its bias, which it may not have had."""
    bias = arguments[2] if len(arguments) > 2 else None
    total = more if bias is None else bias.reshape(-1) + more
    return [*arguments[:2], total, *arguments[3:]]


def _together(
    arguments: list[torch.Tensor | None], device: torch.device, host: frozenset[int]
) -> list[torch.Tensor | None]:
    """Return the arguments on the device if any of them is there, but for those that are read as numbers."""
    there = any(v is not None and v.device.type == device.type for v in arguments)
    return [
        v if v is None or (not there and i not in host) else v.cpu() if i in host else v.to(device)
        for i, v in enumerate(arguments)
    ]
