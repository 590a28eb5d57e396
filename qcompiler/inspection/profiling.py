"""Measuring a model, or two side by side, on this machine or on another device."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from qcompiler.data import Dataset, Subset, input_specs, open_dataset, synthetic_inputs
from qcompiler.errors import ModelError, UsageError
from qcompiler.model.normalize import unique_names
from qcompiler.model.read import Source, read_source, to_ir
from qcompiler.model.save import save_model
from qcompiler.recipe import ImagePreprocessing
from qcompiler.records import LatencyComparison, LatencyProfile, LayerTime
from qcompiler.runtime.devices import Bundle, open_device
from qcompiler.runtime.devices.answer import measure
from qcompiler.runtime.devices.records import DeviceReport
from qcompiler.runtime.gate_process import ProfiledNode, write_samples
from qcompiler.runtime.optimized import Origins, node_times


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileOptions:
    """How to measure.

    Attributes:
        data: samples as ``open_dataset`` takes them, the first is run; None generates one.
        threads: threads of the session.
        seconds: time to spend on the measurement.
        seed: of the generated sample.
        device: where to measure, as ``open_device`` takes it.
        layers: also report the time of every node.
    """

    data: str | None = None
    threads: int = 1
    seconds: float = 2.0
    seed: int = 0
    device: str = "local"
    layers: bool = False

    def __post_init__(self) -> None:
        if self.threads < 1 or not 0 < self.seconds <= 3600:
            raise UsageError(
                f"threads is {self.threads}, seconds {self.seconds}; give 1 or more, and up to 3600 seconds"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileResult:
    """What was measured.

    Attributes:
        model / other: the model files; ``other`` is None if one model was measured.
        source: where the sample comes from.
        profile: latency of ``model``.
        device: where, and under which conditions.
        comparison: ``model`` as the result against ``other`` as the original; None without ``other``.
        layers: time of every node, "after" in ``model`` and "before" in ``other``; empty unless asked for.
    """

    model: Path
    other: Path | None
    source: str
    profile: LatencyProfile
    device: DeviceReport
    comparison: LatencyComparison | None = None
    layers: tuple[LayerTime, ...] = ()


def profile_model(model: Path, other: Path | None = None, options: ProfileOptions | None = None) -> ProfileResult:
    """Measure a model in a process of its own; with ``other``, both in turns, so that both see the same load.

    Args:
        model: a model file, or a result folder.
        other: what to compare with, the same inputs; a model file or a result folder.
        options: how and where to measure.

    Raises:
        ModelError: a model cannot be read or does not run.
        DataError: the data does not fit the model.
        RuntimeUnavailable: the device cannot be reached, lacks something, or does not run the model.
        LatencyUnavailable: the device was lost before it had measured.
    """
    options = options or ProfileOptions()
    device = open_device(options.device)
    paths = tuple(model_file(p) for p in (model, other) if p is not None)
    with tempfile.TemporaryDirectory(prefix="qcompile-profile-") as name:
        sources = [read_source(path) for path in paths]
        models = [to_ir(source) for source in sources]
        sample = one_sample(models[0], options.data, options.seed)
        write_samples(sample, Path(name))
        if options.layers:
            sources = [_named(s, m, Path(name) / str(i)) for i, (s, m) in enumerate(zip(sources, models, strict=True))]
        bundle = Bundle(
            models=tuple(source.path for source in sources),
            labels=tuple(str(path) for path in paths),
            external={source.path: source.external for source in sources},
            sample=Path(name) / "00000.npz",
            threads=options.threads,
            seconds=options.seconds,
            layers=options.layers,
        )
        measured = measure(device, bundle)
    return ProfileResult(
        model=paths[0],
        other=paths[1] if other is not None else None,
        source=sample.source,
        profile=measured.profile,
        device=measured.report,
        comparison=measured.comparison,
        layers=_layers(measured.nodes, models),
    )


def model_file(path: Path) -> Path:
    """Return the model of a result folder, or the file itself.

    Raises:
        ModelError: the folder holds no model.
    """
    if not path.is_dir():
        return path
    if not (path / "model.onnx").is_file():
        raise ModelError(f"{path} holds no model.onnx; give a model file or a folder that qcompile wrote")
    return path / "model.onnx"


def one_sample(model: ir.Model, data: str | None, seed: int = 0) -> Dataset:
    """Return one sample for a model: the first of some data, or a generated one.

    Raises:
        DataError: the data does not fit the model.
    """
    specs = input_specs(model)
    if data is None:
        return synthetic_inputs(specs, 1, seed)
    return Subset(open_dataset(data, specs, ImagePreprocessing()), (0,))


# -- layers --------------------------------------------------------------------------------------------


def _named(source: Source, model: ir.Model, folder: Path) -> Source:
    """Return a model whose nodes can be told apart: as it is, or a copy of it where some share a name or have none."""
    names = [node.name for node in model.graph.all_nodes()]
    if all(names) and len(set(names)) == len(names):
        return source
    unique_names(model)
    folder.mkdir()
    save_model(model, folder / source.path.name)
    return read_source(folder / source.path.name)


def _layers(nodes: Sequence[list[ProfiledNode]], models: Sequence[ir.Model]) -> tuple[LayerTime, ...]:
    """Return the time of every node, longest first.

    Nodes of the first model count as those of the second that they were made from; what was added to it, such as
    QuantizeLinear of an input, is a row of its own.
    """
    if not nodes:
        return ()
    model = models[0]
    if len(models) == 1:
        return node_times({"result": nodes[0]}, model, model)
    other, origins = models[1], Origins(models[1])
    known = [node for node in nodes[0] if origins.find(node.name) is not None]
    added = [node for node in nodes[0] if origins.find(node.name) is None]
    shared = node_times({"original": nodes[1], "result": known}, other, other)
    rows = {row.name: row for row in shared}
    for row in node_times({"result": added}, model, model):
        before = rows[row.name].before_us if row.name in rows else None
        rows[row.name] = replace(row, before_us=before)
    return tuple(sorted(rows.values(), key=lambda r: (-max(r.before_us or 0.0, r.after_us or 0.0), r.name)))
