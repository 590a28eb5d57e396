"""compile_model: load, decide, write, verify, repair, report. The whole story on one page."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ParamSpec, TypeVar

import onnx_ir as ir

from qcompiler.artifacts import write_artifact
from qcompiler.data import Subset
from qcompiler.errors import FloorMissed, NothingToCompress, QCompileError, UsageError
from qcompiler.layers import histograms, kept_constants, layer_reports
from qcompiler.measured_placement import place_by_measurement
from qcompiler.model.load import LoadedModel, load_model
from qcompiler.model.save import OutputFolder, save_model
from qcompiler.passes import MINIMAL, WITH_DATA, WITHOUT_DATA
from qcompiler.pipeline import AfterPass, Pipeline, select
from qcompiler.plan import CompressionPlan, Role
from qcompiler.protocols import Pass, PassKind, PassResult, Target
from qcompiler.recipe import Recipe
from qcompiler.records import CompileReport, PassReport
from qcompiler.registry import load_target, make_pass
from qcompiler.repair import Repair
from qcompiler.report.card import CardInputs, quantization_card
from qcompiler.report.compare import write_comparison
from qcompiler.report.digest import floor_sentence
from qcompiler.report.document import write_report
from qcompiler.report.html import write_html
from qcompiler.runtime.available import check_shapes, check_target
from qcompiler.runtime.emulation.build import Emulator
from qcompiler.runtime.emulation.check import emulator_for
from qcompiler.runtime.machine import machine_name, versions
from qcompiler.samples import Samples, class_outputs, prepare_samples
from qcompiler.shared_plan import SEPARATOR, places_alike, with_shared_plan
from qcompiler.state import Context, Fact, Progress, State, no_progress
from qcompiler.trial import Trial, layer_levels
from qcompiler.verify import GateInputs, GateResult, on_boards, verify

T = TypeVar("T")
P = ParamSpec("P")

PLACING_EFFORT = 2
NAMED_SKIPS = 5
LEVEL_SAMPLES = 2
"""Samples on which the error of every layer is measured for the report."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CompileResult:
    """One compiled target: where it is, and everything that was found out."""

    target: str
    folder: Path
    report: CompileReport


def compile_model(
    model: Path | str,
    *,
    recipe: Recipe | None = None,
    out: Path | str | None = None,
    force: bool = False,
    command: Sequence[str] = (),
    progress: Progress = no_progress,
) -> tuple[CompileResult, ...]:
    """Compile a model for every target of a recipe and return the verified results.

    One target fills ``out`` (default ``<model stem>.qcompile``), several fill ``out/<target>``.

    Args:
        model: the ONNX file.
        recipe: what is asked; None takes the defaults.
        out: the folder to write.
        force: replace an existing result.
        command: the command line, for the report.
        progress: called as ``progress(what, done, total)``.

    Raises:
        FloorMissed: a result falls short; ``results`` holds what was written to ``DIR.failed``.
        NothingToCompress: no tensor can be compressed; nothing is written.
        QCompileError: any other refusal; see ``qcompiler.errors``.
    """
    path, recipe = Path(model), recipe or Recipe()
    targets = [load_target(name) for name in recipe.targets]
    names = [t.full_name for t in targets]
    if twice := next((n for n in names if names.count(n) > 1), ""):
        raise UsageError(f"target {twice} is given twice; give each target once")
    folder = Path(out) if out is not None else Path(f"{path.stem}.qcompile")
    places = [folder] if len(targets) == 1 else [folder / t.full_name.replace(":", "-") for t in targets]
    outputs = [OutputFolder(place, force=force) for place in places]
    emulator = emulator_for(recipe, names, progress)
    started = time.perf_counter()
    for target in targets:
        check_target(target, recipe)
    progress("loading", 0, 0)
    loaded = load_model(path)
    for target in targets:
        check_shapes(target, loaded.model)
    samples = prepare_samples(loaded.model, recipe)
    seconds = time.perf_counter() - started
    job = _Job(path, loaded, samples, recipe, tuple(command), progress, seconds, tuple(targets), emulator)
    results = [_Compilation(job, target, output).run() for target, output in zip(targets, outputs, strict=True)]
    if len(results) > 1:
        write_comparison([r.report for r in results], folder, [p.name for p in places])
    missed = [r for r in results if not r.report.verdict.held]
    if missed:
        floors = [floor_sentence(f) for f in missed[0].report.verdict.missed]
        cause = missed[0].report.verdict.failure or "; ".join(floors)
        where = f"{path.name} for {missed[0].target}"
        raise FloorMissed(f"{where}: {cause}; see {missed[0].folder}/report.html", tuple(results))
    return tuple(results)


def plan_only(model: Path | str, *, recipe: Recipe) -> str:
    """Return what would be done, as text: the passes in order and the precision of every node."""
    path = Path(model)
    loaded = load_model(path)
    samples = prepare_samples(loaded.model, recipe)
    lines = [f"{path.name}: {loaded.facts.nodes} nodes, opset {loaded.facts.opset}"]
    for name in recipe.targets:
        target = load_target(name)
        job = _Job(path, loaded, samples, recipe, (), no_progress, 0.0)
        lines += _Compilation(job, target, None).describe()
    return "\n".join(lines)


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    path: Path
    loaded: LoadedModel
    samples: Samples
    recipe: Recipe
    command: tuple[str, ...]
    progress: Progress
    load_seconds: float
    targets: tuple[Target, ...] = ()
    emulator: Emulator | None = None
    decided: dict[str, tuple[State, tuple[PassReport, ...]]] = field(default_factory=dict)
    """Target -> what was decided for it, or for an earlier target that places the model alike."""


@dataclass(slots=True)
class _Compilation:
    """One model for one target."""

    job: _Job
    target: Target
    output: OutputFolder | None
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self) -> CompileResult:
        """Decide, write, verify and repair until every floor holds or nothing is left to try."""
        if self.output is None:
            raise QCompileError("no folder to write to")
        self.seconds["loading"] = self.job.load_seconds
        context = self._context()
        with self.output as output:
            state, reports = self._timed("deciding", self._decide_once, context, output.path)
            self._refuse_nothing(state, reports)
            state, reports = self._timed("placing", self._place, state, reports, context)
            gate, state, reports, repair, levels = self._verified(state, reports, context, output)
            self._refuse_nothing(state, reports)
            state.plan.save(output.path)
            report = self._report(state, gate, reports, repair, levels)
            write_report(report, output.path)
            write_html(report, output.path)
            place = output.commit() if gate.verdict.held else output.reject()
        return CompileResult(target=self.target.full_name, folder=place, report=report)

    def describe(self) -> list[str]:
        """Return the passes and, after placement, the precision of every node, as lines."""
        passes = self._passes()
        context = replace(self._context(), trial=None)
        cut = next((i + 1 for i, p in enumerate(passes) if p.name == "place"), len(passes))
        state, _ = Pipeline(passes[:cut], check=False).run(self._start(), context)
        lines = [f"target {self.target.full_name}", "passes: " + ", ".join(p.name for p in passes)]
        for node in state.plan.nodes.values():
            lines.append(f"  {node.precision:<12} {node.op_type:<20} {node.name}  ({node.reason})")
        return lines

    def _refuse_nothing(self, state: State, reports: Sequence[PassReport]) -> None:
        """Raise NothingToCompress if a plan compresses nothing, unless the user accepts that."""
        if state.plan.compresses or self.job.recipe.allow_unchanged:
            return
        kept = [f"{s.tensor}: {s.reason}" for s in kept_constants(state, reports)]
        reasons = "; ".join(kept[:NAMED_SKIPS]) if kept else "it holds no constants in floating point"
        more = f" (and {len(kept) - NAMED_SKIPS} more)" if len(kept) > NAMED_SKIPS else ""
        known = "the model is already quantized; " if self.job.loaded.facts.already_quantized else ""
        raise NothingToCompress(
            f"{self.job.path}: nothing to compress for {self.target.full_name}: {known}{reasons}{more}; "
            "--allow-unchanged accepts that"
        )

    # -- decide ------------------------------------------------------------------------------------

    def _context(self) -> Context:
        job, samples = self.job, self.job.samples
        context = Context(
            target=self.target,
            recipe=job.recipe,
            calibration=samples.calibration,
            acceptance=samples.acceptance,
            progress=job.progress,
        )
        searching = job.recipe.effort > 0 and job.recipe.replay is None
        if samples.acceptance is None or not searching:
            return context
        return replace(context, trial=Trial(job.loaded.model, self.target, samples.acceptance, context))

    def _start(self) -> State:
        plan = CompressionPlan()
        if self.job.recipe.replay is not None:
            recorded = CompressionPlan.load(Path(self.job.recipe.replay))
            plan = CompressionPlan(tensors={k: t for k, t in recorded.tensors.items() if t.role is Role.FACTORS})
        return State(model=self.job.loaded.model, plan=plan)

    def _passes(self) -> tuple[Pass, ...]:
        recipe, with_data = self.job.recipe, self.job.samples.calibration is not None
        if recipe.passes is not None:
            names: Sequence[str] = recipe.passes
        elif recipe.effort == 0:
            names = MINIMAL[with_data]
        else:
            names = WITH_DATA if with_data else WITHOUT_DATA
        return select([make_pass(n) for n in names], recipe.skip_passes)

    def _lowering_passes(self) -> tuple[Pass, ...]:
        """Return the target's lowering passes, and behind them those that the user named."""
        names = self.target.lower_passes()
        named = [p for p in self._passes() if p.kind is PassKind.LOWER and p.name not in names]
        return (*(make_pass(n) for n in names), *named)

    def _decide_once(self, context: Context, folder: Path) -> tuple[State, tuple[PassReport, ...]]:
        """Decide, for all targets at once that place the model alike; a target that was decided for is done."""
        name, decided = self.target.full_name, self.job.decided
        if self.job.recipe.replay is not None or self.job.recipe.dump_after:
            return self._decide(context, folder)
        if name not in decided:
            state, reports = self._decide(context, folder)
            others = [t for t in self.job.targets if t.full_name not in {name, *decided}]
            alike = [name, *(t.full_name for t in others if places_alike(state, context, t))]
            state = replace(state, plan=replace(state.plan, target=SEPARATOR.join(alike)))
            decided.update(dict.fromkeys(alike, (state, reports)))
        return decided[name]

    def _decide(self, context: Context, folder: Path) -> tuple[State, tuple[PassReport, ...]]:
        """Run rewrites and plan passes; a replay runs the rewrites and takes the recorded plan."""
        passes = tuple(p for p in self._passes() if p.kind is not PassKind.LOWER)
        if self.job.recipe.replay is not None:
            recorded = CompressionPlan.load(Path(self.job.recipe.replay))
            passes = tuple(p for p in passes if p.kind is PassKind.REWRITE)
            state, reports = Pipeline(passes, self.job.samples.probe).run(self._start(), context)
            if self.target.full_name not in recorded.target.split(SEPARATOR):
                recorded = recorded.with_choice("plan recorded for", recorded.target)
            known = {Fact.PLACEMENT, Fact.STATISTICS, Fact.RANGES, Fact.WEIGHT_SCALES}
            return replace(state, plan=recorded, facts=state.facts | known), reports
        return Pipeline(passes, self.job.samples.probe).run(self._start(), context, self._dump(folder))

    def _place(
        self, state: State, reports: tuple[PassReport, ...], context: Context
    ) -> tuple[State, tuple[PassReport, ...]]:
        """Split the network by measured latency, at -O2 and on the target itself."""
        recipe, here = self.job.recipe, self.target.executes_here and self.target.runtime_name == "onnxruntime"
        if recipe.effort < PLACING_EFFORT or recipe.replay is not None or not here:
            return state, reports
        started = time.perf_counter()
        state, report = place_by_measurement(state, context, self.job.samples.probe, self._lowered_model(context))
        return state, (*reports, replace(report, seconds=time.perf_counter() - started))

    def _lowered_model(self, context: Context) -> Callable[[State], ir.Model]:
        steps = Pipeline(self._lowering_passes(), check=False)
        return lambda state: steps.run(state, replace(context, progress=no_progress))[0].model

    def _dump(self, folder: Path) -> AfterPass | None:
        wanted = self.job.recipe.dump_after
        if not wanted:
            return None

        def after(step: Pass, result: PassResult) -> None:
            if step.name in wanted:
                place = folder / "dump" / step.name
                place.mkdir(parents=True, exist_ok=True)
                save_model(result.state.model, place / "model.onnx")
                result.state.plan.save(place)

        return after

    # -- write, verify, repair ---------------------------------------------------------------------

    def _verified(
        self, state: State, reports: tuple[PassReport, ...], context: Context, output: OutputFolder
    ) -> tuple[GateResult, State, tuple[PassReport, ...], Repair, dict[str, float]]:
        repair = Repair(context, state)
        while True:
            lowered, lowering = self._timed("lowering", self._lower, state, context, output.path)
            files = self._timed("writing", self._write, lowered, output.path)
            self.job.progress("verifying", len(repair.steps), 0)
            inputs, result = self._gate_inputs(state), output.path / "model.onnx"
            gate = self._timed("verifying", verify, inputs, files, result)
            better = None
            if not gate.verdict.held and self.job.recipe.replay is None:
                better = self._timed("repairing", repair.propose, gate.verdict, gate.layer_times)
            if better is None:
                if self.job.emulator is not None:
                    gate = self._timed("emulating", on_boards, gate, inputs, result, self.job.emulator)
                runs = not gate.verdict.failure
                levels = self._timed("measuring layers", self._levels, state, lowered) if runs else {}
                return gate, state, (*reports, *lowering), repair, levels
            state = better

    def _lower(self, state: State, context: Context, folder: Path) -> tuple[State, tuple[PassReport, ...]]:
        return Pipeline(self._lowering_passes()).run(state, context, self._dump(folder))

    def _write(self, lowered: State, folder: Path) -> dict[str, int]:
        if not lowered.plan.compresses:
            lowered = replace(lowered, model=self.job.loaded.model)
        written = list(save_model(lowered.model, folder / "model.onnx"))
        written += [write_artifact(name, folder / "model.onnx") for name in self.target.artifacts()]
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

    def _levels(self, state: State, lowered: State) -> dict[str, float]:
        names = [t.name for t in state.plan.tensors.values() if t.role is Role.ACTIVATION]
        if not names:
            return {}
        samples = self.job.samples
        few = samples.acceptance or samples.verification
        part = Subset(few, tuple(range(min(LEVEL_SAMPLES, len(few)))))
        return layer_levels(state.model, lowered.model, names, part, self.job.recipe.threads)

    # -- report ------------------------------------------------------------------------------------

    def _report(
        self,
        state: State,
        gate: GateResult,
        reports: tuple[PassReport, ...],
        repair: Repair,
        levels: dict[str, float],
    ) -> CompileReport:
        job, verdict = self.job, with_shared_plan(gate.verdict, state.plan)
        facts = CardInputs(
            recipe=job.recipe,
            target=self.target.full_name,
            plan=state.plan,
            model=job.loaded.facts,
            data=job.samples.facts,
            passes=reports,
            verdict=verdict,
            order=tuple(n.name or "" for n in state.model.graph),
        )
        return CompileReport(
            versions=versions(),
            command=job.command,
            recipe=job.recipe.to_json(),
            target=self.target.full_name,
            target_summary=self.target.summary,
            model=job.loaded.facts,
            data=job.samples.facts,
            passes=reports,
            layers=layer_reports(state, levels, verdict.integer),
            histograms=histograms(state),
            repairs=tuple(repair.steps),
            verdict=verdict,
            choices=dict(state.plan.choices),
            card=quantization_card(facts),
            layer_times=gate.layer_times,
            stage_seconds=dict(self.seconds),
            machine=machine_name(),
        )

    def _timed(self, stage: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do some work and add its wall time to a stage."""
        started = time.perf_counter()
        try:
            return work(*args, **kwargs)
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started
