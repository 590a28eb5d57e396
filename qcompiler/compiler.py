"""compile_model: load, decide, write, verify, repair, report. The whole story on one page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir

from qcompiler.budget import Budget
from qcompiler.data import Subset
from qcompiler.errors import FloorMissed, NothingToCompress, QCompileError, UsageError
from qcompiler.flow.attempt import Attempt, Attempts, dumped
from qcompiler.flow.improvement import Improvement, improves, worth_improving
from qcompiler.flow.job import Job, Stopwatch
from qcompiler.gate.metrics import check_metric
from qcompiler.interrupts import finish_on_signals
from qcompiler.layers import frontier_report, histograms, kept_constants, layer_reports
from qcompiler.lookups import refuse_gate_counts
from qcompiler.model.load import load_model
from qcompiler.model.save import OutputFolder
from qcompiler.passes import (
    IMPROVING,
    MINIMAL,
    RETRAINING,
    SETTLING,
    TRAINING,
    TRAINING_WORDS,
    WITH_DATA,
    WITHOUT_DATA,
)
from qcompiler.pipeline import Pipeline, select
from qcompiler.placement.dispatch import Placing, place_measured
from qcompiler.plan import CompressionPlan, Role
from qcompiler.protocols import Pass, PassKind, Target
from qcompiler.recipe import Recipe
from qcompiler.records import CompileReport, LayerDamage, PassReport, Search
from qcompiler.registry import load_target, make_pass
from qcompiler.repair.bits import ranked_damage, rescaling, with_actions, with_nearest
from qcompiler.report.card import CardInputs, quantization_card
from qcompiler.report.compare import write_comparison
from qcompiler.report.digest import floor_sentence
from qcompiler.report.document import write_report
from qcompiler.report.html import write_html
from qcompiler.runtime.available import check_shapes, check_target
from qcompiler.runtime.emulation.check import emulator_for
from qcompiler.runtime.machine import machine_name, versions
from qcompiler.samples import prepare_samples
from qcompiler.shared_plan import SEPARATOR, places_alike, with_shared_plan
from qcompiler.state import Context, Fact, Progress, State, no_progress
from qcompiler.trials.acceptance import with_judges
from qcompiler.trials.trial import layer_levels

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
    started, budget = time.perf_counter(), Budget(seconds=recipe.max_time_s, memory_bytes=recipe.max_memory_bytes)
    check_metric(recipe)
    for target in targets:
        check_target(target, recipe)
    progress("loading", 0, 0)
    loaded = load_model(path)
    for target in targets:
        check_shapes(target, loaded.model)
    samples = prepare_samples(loaded.model, recipe)
    refuse_gate_counts(loaded.model, recipe.token_counts, samples.verification)
    seconds = time.perf_counter() - started
    job = Job(path, loaded, samples, recipe, tuple(command), progress, seconds, tuple(targets), emulator, budget)
    results = _compiled(job, outputs)
    if len(results) > 1:
        write_comparison([r.report for r in results], folder, [p.name for p in places])
    missed = [r for r in results if not r.report.verdict.held]
    if missed:
        floors = [floor_sentence(f) for f in missed[0].report.verdict.missed]
        cause = missed[0].report.verdict.failure or "; ".join(floors)
        where = f"{path.name} for {missed[0].target}"
        raise FloorMissed(f"{where}: {cause}; see {missed[0].folder}/report.html", tuple(results))
    return tuple(results)


def _compiled(job: Job, outputs: Sequence[OutputFolder]) -> list[CompileResult]:
    """Compile for one target after the other; what time is left is shared by those to come."""
    results: list[CompileResult] = []
    for target, output in zip(job.targets, outputs, strict=True):
        share = job.budget.share(len(outputs) - len(results))
        results.append(_Compilation(replace(job, budget=share), target, output).run())
    return results


def training_of(recipe: Recipe) -> tuple[str, ...]:
    """Return the passes that train weights, where a recipe asks for that."""
    if recipe.xor_bits is not None:
        return TRAINING_WORDS
    return TRAINING if recipe.fine_tune_minutes else ()


def plan_only(model: Path | str, *, recipe: Recipe) -> str:
    """Return what would be done, as text: the passes in order and the precision of every node."""
    path = Path(model)
    loaded = load_model(path)
    samples = prepare_samples(loaded.model, recipe)
    lines = [f"{path.name}: {loaded.facts.nodes} nodes, opset {loaded.facts.opset}"]
    for name in recipe.targets:
        target = load_target(name)
        job = Job(path, loaded, samples, recipe, (), no_progress, 0.0)
        lines += _Compilation(job, target, None).describe()
    return "\n".join(lines)


@dataclass(slots=True)
class _Compilation:
    """One model for one target."""

    job: Job
    target: Target
    output: OutputFolder | None
    watch: Stopwatch = field(default_factory=Stopwatch)

    def run(self) -> CompileResult:
        """Decide, write, verify and repair until every floor holds; improve that until it is done or time is up."""
        if self.output is None:
            raise QCompileError("no folder to write to")
        self.watch.seconds["loading"] = self.job.load_seconds
        started, timed, budget = time.perf_counter(), self.watch.timed, self.job.budget
        context = self._context()
        with self.output as output:
            state, reports = timed("deciding", self._decide_once, context, output.path)
            self._refuse_nothing(state, reports)
            state, reports = timed("placing", self._place, state, reports, context)
            attempts, verifying = self._attempts(context), time.perf_counter()
            first = attempts.make(state, output.path)
            self._refuse_nothing(first.state, reports)
            budget.keep_back(time.perf_counter() - verifying)
            settling = tuple(p for p in self._passes() if p.name in SETTLING)
            better = Improvement(attempts, context, output.path, first, settling)
            with finish_on_signals(budget, lambda: better.best.held):
                search = better.run(self._improving(state.plan), time.perf_counter() - started)
                report = self._report(better, (*reports, *better.reports), search)
                better.best.state.plan.save(output.path)
                write_report(report, output.path)
                write_html(report, output.path)
                place = output.commit() if report.verdict.held else output.reject()
            if report.verdict.held and (search is None or search.ended == "complete"):
                context.checkpoint.remove()
        return CompileResult(target=self.target.full_name, folder=place, report=report)

    def describe(self) -> list[str]:
        """Return the passes and, after placement, the precision of every node, as lines."""
        passes = self._passes()
        context = replace(self._context(), trial=None, closeness=None, acceptable=None)
        cut = next((i + 1 for i, p in enumerate(passes) if p.name == "place"), len(passes))
        state, _ = Pipeline(passes[:cut], check=False).run(self._start(), context)
        lines = [f"target {self.target.full_name}", "passes: " + ", ".join(p.name for p in passes)]
        nodes = state.plan.nodes.values()
        return [*lines, *(f"  {n.precision:<12} {n.op_type:<20} {n.name}  ({n.reason})" for n in nodes)]

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
            budget=job.budget,
        )
        if self.output is not None:
            context = replace(context, checkpoint=job.checkpoint(self.target, self.output.folder))
        return with_judges(context, job.loaded.model, samples)

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
            names = (*(WITH_DATA if with_data else WITHOUT_DATA), *IMPROVING.get(recipe.effort, ()))
            names = tuple(dict.fromkeys((*names, *training_of(recipe))))
        return select([make_pass(n) for n in names], recipe.skip_passes)

    def _improving(self, plan: CompressionPlan) -> tuple[Pass, ...]:
        """Return the searches for a better result: those that the user named, or where they are worth it.

        A plan that is replayed is searched no more, but trained if that is asked for.
        """
        recipe = self.job.recipe
        if recipe.replay is not None:
            return tuple(p for p in self._passes() if p.name in RETRAINING and recipe.fine_tune_minutes)
        named = recipe.passes is not None or recipe.fine_tune_minutes > 0
        if not (named or worth_improving(plan)):
            return ()
        return tuple(p for p in self._passes() if improves(p))

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
        passes = tuple(p for p in self._passes() if p.kind is not PassKind.LOWER and not improves(p))
        if self.job.recipe.replay is not None:
            recorded = CompressionPlan.load(Path(self.job.recipe.replay))
            passes = tuple(p for p in passes if p.kind is PassKind.REWRITE)
            state, reports = Pipeline(passes, self.job.samples.probe).run(self._start(), context)
            if self.target.full_name not in recorded.target.split(SEPARATOR):
                recorded = recorded.with_choice("plan recorded for", recorded.target)
            known = {Fact.PLACEMENT, Fact.STATISTICS, Fact.RANGES, Fact.WEIGHT_SCALES}
            recorded = _of_model(recorded, state.model)
            return replace(state, plan=recorded, facts=state.facts | known), reports
        # What writing the plan needs is asked for now, not after minutes of searching.
        Pipeline((*passes, *self._lowering_passes())).check_order(self._start().facts)
        return Pipeline(passes, self.job.samples.probe).run(self._start(), context, dumped(self.job, folder))

    def _place(
        self, state: State, reports: tuple[PassReport, ...], context: Context
    ) -> tuple[State, tuple[PassReport, ...]]:
        """Split the network by what is measured, at -O2 and where the target is here or emulated."""
        lower, samples = self._attempts(context).model_of, self.job.samples.probe
        job = Placing(context=context, samples=samples, lower=lower, emulator=self.job.emulator)
        return place_measured(state, reports, job)

    def _attempts(self, context: Context) -> Attempts:
        return Attempts(
            job=self.job,
            target=self.target,
            context=context,
            lowering=self._lowering_passes(),
            watch=self.watch,
            rescale=rescaling(self._passes(), context),
        )

    # -- report ------------------------------------------------------------------------------------

    def _levels(self, state: State, lowered: State) -> dict[str, float]:
        names = [t.name for t in state.plan.tensors.values() if t.role is Role.ACTIVATION]
        if not names:
            return {}
        samples = self.job.samples
        few = samples.acceptance or samples.verification
        part = Subset(few, tuple(range(min(LEVEL_SAMPLES, len(few)))))
        return layer_levels(state.model, lowered.model, names, part, self.job.recipe.threads)

    def _damages(self, best: Attempt, context: Context) -> list[LayerDamage]:
        """Return the layers below 8 bits by the damage they do, also where no floor was missed by it."""
        if best.repair.damages or best.gate.verdict.failure or not best.held or context.budget.spent():
            return best.repair.damages
        found = self.watch.timed("measuring layers", ranked_damage, best.state, context)
        return with_actions(found, best.state, "none: every floor holds")

    def _report(self, better: Improvement, reports: tuple[PassReport, ...], search: Search | None) -> CompileReport:
        job, best, context = self.job, better.best, better.context
        state = best.state
        verdict = with_shared_plan(with_nearest(best.gate.verdict, state, context), state.plan)
        levels, reports = {}, (*reports, *best.lowering)
        if not best.gate.verdict.failure:
            levels = self.watch.timed("measuring layers", self._levels, state, best.lowered)
        facts = CardInputs(
            recipe=job.recipe,
            target=self.target.full_name,
            plan=state.plan,
            model=job.loaded.facts,
            data=job.samples.facts,
            passes=reports,
            verdict=verdict,
            order=tuple(n.name or "" for n in state.model.graph),
            mean_bits=state.bit_search.chosen.mean_bits if state.bit_search is not None else None,
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
            repairs=tuple(best.repair.steps),
            verdict=verdict,
            choices=dict(state.plan.choices),
            card=quantization_card(facts),
            layer_times=best.gate.layer_times,
            frontier=frontier_report(best.state),
            damages=tuple(self._damages(best, context)),
            stage_seconds=dict(self.watch.seconds),
            machine=machine_name(),
            search=search,
        )


def _of_model(plan: CompressionPlan, model: ir.Model) -> CompressionPlan:
    """Return a recorded plan without weights that the model lacks: it may be a part of the one that was compiled."""
    constants = {name for graph in model.graphs() for name in graph.initializers}
    stored = (Role.WEIGHT, Role.TABLE)
    return replace(plan, tensors={k: t for k, t in plan.tensors.items() if t.role not in stored or t.name in constants})
