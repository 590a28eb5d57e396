"""Running passes in order, and checking that each did only what its kind may do."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_ir as ir

from qcompiler.data import Dataset
from qcompiler.decoding import differing_constant, float_weight
from qcompiler.errors import DataError, QCompileError, RuntimeUnavailable, UsageError
from qcompiler.model.edit import clone, load_external
from qcompiler.model.fingerprint import structure_fingerprint
from qcompiler.model.probe import shorten
from qcompiler.model.save import constant_bytes, to_proto
from qcompiler.protocols import Pass, PassKind, PassResult
from qcompiler.quant.grid import power_ratio_db
from qcompiler.records import PassReport
from qcompiler.runtime.capture import Executor, does_not_run
from qcompiler.state import Context, Fact, State

EQUIVALENT_DB = 60.0
"""Two float graphs agree: rounding in another order leaves 100 dB and more, a wrong factor leaves less than 40."""

HALF_EQUIVALENT_DB = 25.0
"""A float16 graph rounds every value to 11 bits; one that computes in float32 is better, not equal."""

CHECK_ABOVE_BYTES = 1 << 28
"""Models above this size are not serialized a second time for checks."""

NOTHING = 1e-7
"""A difference below this is the rounding of an output that is zero, or nearly."""

AfterPass = Callable[[Pass, PassResult], None]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """An ordered list of passes.

    Attributes:
        passes: in the order they run.
        probe: a few samples on which rewrites must leave the outputs alone; None skips that check.
        check: verify what each pass did; off for the many trial runs inside a search.
    """

    passes: tuple[Pass, ...]
    probe: Dataset | None = None
    check: bool = True

    def check_order(self, facts: frozenset[Fact]) -> None:
        """Check that every pass finds what it requires.

        Raises:
            UsageError: a pass requires a fact that no earlier pass provides.
        """
        for step in self.passes:
            if missing := step.requires - facts:
                known = ", ".join(sorted(facts)) or "nothing"
                raise UsageError(
                    f"pass '{step.name}' needs {', '.join(sorted(missing))}, but at its place there is {known}; "
                    "put the pass that provides it before"
                )
            facts = (facts - step.invalidates) | step.provides

    def run(
        self, state: State, context: Context, after: AfterPass | None = None
    ) -> tuple[State, tuple[PassReport, ...]]:
        """Run all passes and return the last state with every report.

        Raises:
            UsageError: the order is wrong.
            QCompileError: a pass broke the contract of its kind.
        """
        self.check_order(state.facts)
        reports: list[PassReport] = []
        unlowered = state.model
        for number, step in enumerate(self.passes):
            context.progress(step.name, number, len(self.passes))
            started = time.perf_counter()
            before = structure_fingerprint(state.model) if self.check else ""
            result = step.run(state, context)
            if result.report.name != step.name:
                raise QCompileError(f"pass '{step.name}' returned a report named '{result.report.name}'")
            if self.check:
                self._check_kind(step, state, result, before)
                if step.kind is PassKind.LOWER:
                    _check_decoded(step, unlowered, state, result.state)
            unlowered = unlowered if step.kind is PassKind.LOWER else result.state.model
            facts = (state.facts - step.invalidates) | step.provides
            state = replace(result.state, facts=facts)
            reports.append(replace(result.report, seconds=time.perf_counter() - started))
            if after is not None:
                after(step, PassResult(state, reports[-1]))
        if self.check and any(step.kind is PassKind.LOWER for step in self.passes):
            _check_lowered(state)
        return state, tuple(reports)

    def _check_kind(self, step: Pass, before: State, result: PassResult, fingerprint: str) -> None:
        changed = result.state.model is not before.model
        edited = structure_fingerprint(before.model) != fingerprint
        if step.kind is PassKind.PLAN and (changed or edited):
            raise QCompileError(f"pass '{step.name}' is a plan pass, but changed the graph")
        if edited:
            raise QCompileError(f"pass '{step.name}' edited the model it was given, instead of a clone")
        if step.kind is PassKind.LOWER and result.state.plan is not before.plan:
            raise QCompileError(f"pass '{step.name}' is a lower pass, but changed the plan")
        if not changed or max(map(constant_bytes, (before.model, result.state.model))) > CHECK_ABOVE_BYTES:
            return
        _check_valid(step, before.model, result.state.model)
        if step.kind is PassKind.REWRITE and self.probe is not None:
            _check_equivalent(step, before.model, result.state.model, self.probe)


def _check_valid(step: Pass, before: ir.Model, after: ir.Model) -> None:
    """Check that a model is still valid; one that never was, and runs all the same, may stay as it is."""
    problem = _invalidity(after)
    if problem and not _invalidity(before):
        raise QCompileError(f"pass '{step.name}' made an invalid model: {problem}")


def _invalidity(model: ir.Model) -> str:
    copy = clone(model)
    load_external(copy)
    try:
        onnx.checker.check_model(to_proto(copy))
    except onnx.checker.ValidationError as error:
        return shorten(str(error))
    return ""


def _check_decoded(step: Pass, unlowered: ir.Model, before: State, after: State) -> None:
    """Check that what is stored in integers decodes to the plan's values, whichever pass stored it."""
    if after.model is before.model or constant_bytes(unlowered) > CHECK_ABOVE_BYTES:
        return
    problem = differing_constant(unlowered, after.model, before.plan)
    if problem:
        raise QCompileError(f"pass '{step.name}' did not write the plan: {problem}")


def _check_lowered(state: State) -> None:
    node = float_weight(state.model, state.plan)
    if node:
        raise QCompileError(f"no pass wrote the weights of node '{node}', which is to run in integers")


def _check_equivalent(step: Pass, before: ir.Model, after: ir.Model, probe: Dataset) -> None:
    names = [v.name or "" for v in before.graph.outputs]
    first, second = Executor(before, names), None
    for index in range(len(probe)):
        feeds = probe[index]
        try:
            expected = first.run(feeds)
        except DataError as error:
            raise does_not_run(probe.source, index, str(error)) from error
        try:
            second = second or Executor(after, names)
            found = second.run(feeds)
        except (RuntimeUnavailable, DataError) as error:
            raise QCompileError(f"pass '{step.name}' made a model that does not run: {error}") from error
        for name in names:
            level = _agreement_db(expected[name], found[name])
            wanted = HALF_EQUIVALENT_DB if np.asarray(expected[name]).dtype == np.float16 else EQUIVALENT_DB
            if level is not None and level < wanted:
                raise QCompileError(
                    f"pass '{step.name}' changed output '{name}': {level:.1f} dB against the graph before it, "
                    f"at least {wanted:.0f} dB expected"
                )


def _agreement_db(expected: object, found: object) -> float | None:
    if not isinstance(expected, np.ndarray) or not isinstance(found, np.ndarray) or expected.dtype.kind != "f":
        return None
    if expected.shape != found.shape:
        return -200.0
    finite = np.isfinite(expected)
    a, b = expected[finite].astype(np.float64), found[finite].astype(np.float64)
    if not np.isfinite(b).all():
        return -200.0
    if np.abs(a - b).max(initial=0.0) < NOTHING:
        return None
    return power_ratio_db(float(a @ a), float(np.sum((a - b) ** 2)))


def select(passes: Sequence[Pass], skip: Sequence[str]) -> tuple[Pass, ...]:
    """Return the passes without those named in ``skip``.

    Raises:
        UsageError: a name in ``skip`` is none of these passes.
    """
    names = [p.name for p in passes]
    for name in skip:
        if name not in names:
            raise UsageError(f"--skip-pass {name}: not in this pipeline; it has {', '.join(names)}")
    return tuple(p for p in passes if p.name not in skip)
