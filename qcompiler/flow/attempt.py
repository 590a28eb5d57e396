"""One attempt: a plan is lowered, written, verified, and repaired until every floor holds or nothing is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from qcompiler.artifacts import write_artifact
from qcompiler.flow.job import Job, Stopwatch
from qcompiler.gate.verify import GateInputs, GateResult, on_boards, verify
from qcompiler.model.save import save_model
from qcompiler.pipeline import AfterPass, Pipeline
from qcompiler.protocols import Pass, PassResult, Target
from qcompiler.records import PassReport
from qcompiler.repair.regions import Repair
from qcompiler.samples import class_outputs
from qcompiler.state import Context, State, no_progress
from qcompiler.unpacking.export import export_streams


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attempt:
    """What became of a plan.

    Attributes:
        state: the plan that was written last, with its repairs.
        lowered: the same, written into the graph.
        lowering: reports of the lowering passes.
        gate: what the gate found on the written files.
        repair: what was taken back, and the plan as it was before.
    """

    state: State
    lowered: State
    lowering: tuple[PassReport, ...]
    gate: GateResult
    repair: Repair

    @property
    def held(self) -> bool:
        """True if the result was verified and every floor holds."""
        return self.gate.verdict.held

    @property
    def planned(self) -> State:
        """The plan as it was decided, before any repair."""
        return self.repair.planned

    @property
    def rank(self) -> tuple[bool, bool, int]:
        """What makes one attempt better than another before its level does: it holds, it runs, little is taken back."""
        return self.held, not self.gate.verdict.failure, -len(self.repair.reverted)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attempts:
    """Makes attempts for one target.

    Attributes:
        lowering: the target's lowering passes, and behind them those that the user named.
        watch: is told how long each stage took.
        rescale: gives weights whose width was changed their scales and codes.
    """

    job: Job
    target: Target
    context: Context
    lowering: tuple[Pass, ...]
    watch: Stopwatch
    rescale: Callable[[State], State]

    def make(self, planned: State, folder: Path, *, repairing: bool = True) -> Attempt:
        """Return what becomes of a plan; the files of the last try lie in the folder.

        Args:
            planned: a completely planned state.
            folder: where to write.
            repairing: take back what damages most where a floor is missed.
        """
        repair, state, timed = Repair(self.context, planned, self.rescale), planned, self.watch.timed
        while True:
            lowered, reports = timed("lowering", self._lower, state, folder)
            files = timed("writing", self._write, lowered, folder)
            self.job.progress("verifying", len(repair.steps), 0)
            inputs, result = self._gate_inputs(state), folder / "model.onnx"
            gate = timed("verifying", verify, inputs, files, result)
            better = None
            if repairing and not gate.verdict.held and self.job.recipe.replay is None:
                better = timed("repairing", repair.propose, gate.verdict, gate.layer_times)
            if better is None:
                if self.job.emulator is not None:
                    gate = timed("emulating", on_boards, gate, inputs, result, self.job.emulator)
                return Attempt(state=state, lowered=lowered, lowering=reports, gate=gate, repair=repair)
            state = better

    def model_of(self, state: State) -> ir.Model:
        """Return a planned state written into a graph, without checks."""
        return Pipeline(self.lowering, check=False).run(state, replace(self.context, progress=no_progress))[0].model

    def _lower(self, state: State, folder: Path) -> tuple[State, tuple[PassReport, ...]]:
        return Pipeline(self.lowering).run(state, self.context, dumped(self.job, folder))

    def _write(self, lowered: State, folder: Path) -> dict[str, int]:
        if not lowered.plan.compresses:
            lowered = replace(lowered, model=self.job.loaded.model)
        written = list(save_model(lowered.model, folder / "model.onnx"))
        written += [write_artifact(name, folder / "model.onnx") for name in self.target.artifacts()]
        export_streams(lowered.model, folder)
        return {p.name: p.stat().st_size for p in written}

    def _gate_inputs(self, state: State) -> GateInputs:
        job = self.job
        return GateInputs(
            original=job.path,
            original_bytes=job.loaded.facts.file_bytes,
            float_model=job.loaded.model,
            planned_model=state.model,
            samples=job.samples.verification,
            real=job.samples.facts is not None,
            labels=job.samples.labels,
            metric=job.recipe.metric,
            classes=class_outputs(job.loaded.model, job.samples.labels),
            floors=job.recipe.floors,
            threads=job.recipe.threads,
            target=self.target,
            require_data=job.recipe.require_data,
            unchanged=not state.plan.compresses,
        )


def dumped(job: Job, folder: Path) -> AfterPass | None:
    """Return what saves the model behind every pass that the user named; None if none was named."""
    wanted = job.recipe.dump_after
    if not wanted:
        return None

    def after(step: Pass, result: PassResult) -> None:
        if step.name in wanted:
            place = folder / "dump" / step.name
            place.mkdir(parents=True, exist_ok=True)
            save_model(result.state.model, place / "model.onnx")
            result.state.plan.save(place)

    return after
