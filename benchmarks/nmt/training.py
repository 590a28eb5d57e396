"""Training of the translation network on the CPU, kept in a cache folder, resumed where it was stopped."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from benchmarks.nmt.corpus import batches_by_tokens, encode, padded, read_part, train_subwords
from benchmarks.nmt.network import Translator, token_loss
from benchmarks.readers import Array


@dataclass(frozen=True, slots=True)
class Schedule:
    """How the network is trained.

    Attributes:
        minutes: of CPU time, of all threads together, so that a busy machine trains as long as a quiet one.
        threads: of torch.
        tokens: the most entries of either side of a batch.
        peak: largest learning rate, reached after ``warmup`` steps, then falling to 0 with the CPU time.
        warmup: steps.
        dropout: behind every sublayer and behind the embedding.
        smoothing: of the labels (Szegedy et al., CVPR 2016).
        decay: of the running mean of the weights, which is what is kept (Polyak and Juditsky, 1992).
        seed: of everything.
    """

    minutes: float = 29.0
    threads: int = 2
    tokens: int = 1024
    peak: float = 1.5e-3
    warmup: int = 500
    dropout: float = 0.1
    smoothing: float = 0.1
    decay: float = 0.998
    seed: int = 0


@dataclass(slots=True)
class _Run:
    """What a checkpoint holds."""

    network: Translator
    mean: Translator
    optimizer: torch.optim.Optimizer
    steps: int = 0
    epochs: int = 0
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0


def subwords(data: Path, cache: Path) -> Tokenizer:
    """Return the subwords of the training lines, from the cache where they are."""
    kept = cache / "subwords.json"
    if not kept.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        train_subwords(read_part(data, "train")).save(str(kept))
    return Tokenizer.from_file(str(kept))


def trained(data: Path, cache: Path, schedule: Schedule) -> tuple[Translator, dict[str, Any]]:
    """Return the trained network and what it cost, from the cache where it is.

    Args:
        data: the folder that has ``text/multi30k``.
        cache: where subwords, checkpoints and the network are kept.
        schedule: how to train; another schedule is another network.
    """
    return _kept(data, cache, schedule, cache / f"translator-{schedule.seed}.pt", None)


def retrained(data: Path, cache: Path, schedule: Schedule, longer: Schedule) -> tuple[Translator, dict[str, Any]]:
    """Return the trained network, trained on: what a network is compared with that was trained while compressed.

    Args:
        data: the folder that has ``text/multi30k``.
        cache: where the networks are kept.
        schedule: of the first training.
        longer: of the second one, which begins with new moments of the optimizer.
    """
    network, _ = trained(data, cache, schedule)
    return _kept(data, cache, longer, cache / f"translator-{schedule.seed}-longer.pt", network)


def _kept(
    data: Path, cache: Path, schedule: Schedule, final: Path, start: Translator | None
) -> tuple[Translator, dict[str, Any]]:
    network = Translator(dropout=0.0)
    if not final.is_file():
        _train(data, cache, schedule, final, start)
    kept = torch.load(final, weights_only=True)
    if kept["schedule"] != asdict(schedule):
        raise SystemExit(f"{final} was trained with {kept['schedule']}; choose another cache folder")
    network.load_state_dict(kept["network"])
    return network.eval(), kept["cost"]


def _train(data: Path, cache: Path, schedule: Schedule, final: Path, start: Translator | None) -> None:
    torch.set_num_threads(schedule.threads)
    tokenizer = subwords(data, cache)
    lines = read_part(data, "train")
    sources, targets = encode(tokenizer, lines.source), encode(tokenizer, lines.target)
    checks = read_part(data, "val")
    held = [encode(tokenizer, side) for side in (checks.source, checks.target)]
    checkpoint = final.with_suffix(".checkpoint")
    run = _start(schedule, start)
    if checkpoint.is_file():
        _restore(run, checkpoint)
    budget = schedule.minutes * 60
    while run.cpu_seconds < budget:
        loss = _epoch(run, schedule, sources, targets)
        _log(
            f"epoch {run.epochs} step {run.steps}: loss {loss:.3f}, val {validation_loss(run.mean, *held):.4f}, "
            f"{run.cpu_seconds / 60:.1f} CPU min, {run.wall_seconds / 60:.1f} wall min"
        )
        _save(run, checkpoint)
    cost = {"cpu_minutes": run.cpu_seconds / 60, "wall_minutes": run.wall_seconds / 60, "steps": run.steps}
    kept = {"network": run.mean.state_dict(), "schedule": asdict(schedule), "cost": {**cost, "epochs": run.epochs}}
    torch.save(kept, final)
    checkpoint.unlink()


def _start(schedule: Schedule, start: Translator | None) -> _Run:
    torch.manual_seed(schedule.seed)
    network = Translator(dropout=schedule.dropout)
    if start is not None:
        network.load_state_dict(start.state_dict())
    mean = copy.deepcopy(network).eval().requires_grad_(False)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.0, betas=(0.9, 0.98), eps=1e-9, fused=True)
    return _Run(network, mean, optimizer)


def _epoch(run: _Run, schedule: Schedule, sources: list[list[int]], targets: list[list[int]]) -> float:
    """Go through the sentences once and return the mean loss; stops where the time is up."""
    # A generator by epoch, so that a resumed run sees the batches that it would have seen.
    generator = np.random.default_rng([schedule.seed, run.epochs])
    torch.manual_seed(schedule.seed * 1000 + run.epochs)
    run.network.train()
    losses = []
    for batch in batches_by_tokens(sources, targets, schedule.tokens, generator):
        cpu, wall = time.process_time(), time.perf_counter()
        losses.append(_step(run, schedule, *batch))
        run.cpu_seconds += time.process_time() - cpu
        run.wall_seconds += time.perf_counter() - wall
        if run.cpu_seconds >= schedule.minutes * 60:
            break
    run.epochs += 1
    return float(np.mean(losses))


def _step(run: _Run, schedule: Schedule, source: Array, target: Array) -> float:
    run.steps += 1
    done = run.cpu_seconds / (schedule.minutes * 60)
    rate = schedule.peak * min(run.steps / schedule.warmup, (schedule.warmup / run.steps) ** 0.5)
    for group in run.optimizer.param_groups:
        group["lr"] = rate * min(1.0, 5 * (1 - done))
    wanted = torch.from_numpy(target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = run.network(torch.from_numpy(source), wanted)
    loss = token_loss(logits.float(), wanted, schedule.smoothing)
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.network.parameters(), 1.0)
    run.optimizer.step()
    decay = min(schedule.decay, run.steps / (run.steps + 10))
    with torch.no_grad():
        for kept, new in zip(run.mean.parameters(), run.network.parameters(), strict=True):
            kept.lerp_(new, 1 - decay)
    return float(loss.detach())


@torch.no_grad()  # type: ignore[untyped-decorator]
def validation_loss(network: Translator, sources: list[list[int]], targets: list[list[int]]) -> float:
    """Return the cross-entropy of a token in nats."""
    total, count = 0.0, 0
    for source, target in _in_order(sources, targets):
        wanted = torch.from_numpy(target)
        tokens = int((wanted != 0).sum())
        total += float(token_loss(network(torch.from_numpy(source), wanted), wanted)) * tokens
        count += tokens
    return total / count


def _in_order(sources: list[list[int]], targets: list[list[int]], rows: int = 64) -> Iterator[tuple[Array, Array]]:
    order = sorted(range(len(sources)), key=lambda row: len(sources[row]))
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        yield padded([sources[row] for row in chosen]), padded([targets[row] for row in chosen])


def _save(run: _Run, path: Path) -> None:
    state = {name: getattr(run, name) for name in ("steps", "epochs", "cpu_seconds", "wall_seconds")}
    state |= {name: getattr(run, name).state_dict() for name in ("network", "mean", "optimizer")}
    scratch = path.with_suffix(".new")
    torch.save(state, scratch)
    scratch.replace(path)


def _restore(run: _Run, path: Path) -> None:
    state = torch.load(path, weights_only=True)
    for name in ("network", "mean", "optimizer"):
        getattr(run, name).load_state_dict(state.pop(name))
    for name, value in state.items():
        setattr(run, name, value)


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
