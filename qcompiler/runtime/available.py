"""The runtimes that a target may name, what to install for each, and which of them are there."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import onnx_ir as ir

from qcompiler.errors import ModelError, RuntimeUnavailable, UsageError
from qcompiler.protocols import Target
from qcompiler.recipe import Recipe
from qcompiler.runtime.widths import check_bits, check_pattern


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime that the gate can run a result in.

    Attributes:
        title: its name for people.
        module: what is imported.
        package: what ``pip install`` gets.
        stands_for: the hardware that it only simulates; "" where it runs on the hardware itself.
        static_shapes: it takes only inputs whose every dimension is known.
    """

    title: str
    module: str
    package: str
    stands_for: str = ""
    static_shapes: bool = False


RUNTIMES: dict[str, Runtime] = {
    "onnxruntime": Runtime("ONNX Runtime", "onnxruntime", "onnxruntime"),
    "openvino": Runtime("OpenVINO", "openvino", "openvino"),
    "qnn": Runtime("Qualcomm's HTP simulator", "onnxruntime_qnn", "onnxruntime-qnn", "Snapdragon HTP", True),
}
"""``Target.runtime_name`` -> the runtime."""


def is_installed(name: str) -> bool:
    """Return whether a runtime of the table can be imported; nothing is imported to find out."""
    return importlib.util.find_spec(RUNTIMES[name].module) is not None


def runtime_of(target: Target) -> Runtime:
    """Return the runtime that a target's results run in.

    Raises:
        UsageError: the target is only a table to lint against, or names a runtime that nobody knows.
        RuntimeUnavailable: the runtime is not installed.
    """
    name = target.runtime_name
    if not name:
        raise UsageError(
            f"target '{target.full_name}' is only a table, nothing can be run for it here; "
            f"use 'qcompile lint MODEL --target {target.full_name}'"
        )
    if name not in RUNTIMES:
        raise UsageError(f"target '{target.full_name}' names runtime '{name}'; known are {', '.join(RUNTIMES)}")
    if not is_installed(name):
        package = RUNTIMES[name].package
        raise RuntimeUnavailable(f"target '{target.full_name}' needs {RUNTIMES[name].title}: pip install {package}")
    return RUNTIMES[name]


def check_target(target: Target, recipe: Recipe) -> None:
    """Check that a target's runtime is there and takes the widths of a recipe, before anything is read.

    Raises:
        UsageError: nothing can be run for the target, or it does not take these widths.
        RuntimeUnavailable: the runtime is not installed, or what fine-tuning needs is not.
    """
    runtime_of(target)
    check_bits(target, recipe)
    check_pattern(target, recipe)
    if recipe.fine_tune_minutes and importlib.util.find_spec("torch") is None:
        raise RuntimeUnavailable('--fine-tune needs PyTorch: pip install "qcompiler[torch]"')


def check_shapes(target: Target, model: ir.Model) -> None:
    """Check that a model's inputs have the shapes that a target's runtime takes.

    Raises:
        ModelError: the runtime wants static shapes and an input has none.
    """
    if not RUNTIMES[target.runtime_name].static_shapes:
        return
    for value in model.graph.inputs:
        if value.shape is None or not value.shape.is_static():
            shown = "of unknown rank" if value.shape is None else ", ".join(map(_dimension, value.shape))
            raise ModelError(
                f"target '{target.full_name}' takes static shapes only; input '{value.name}' is ({shown}): fix it "
                "with 'python -m onnxruntime.tools.make_dynamic_shape_fixed'"
            )


def _dimension(size: int | ir.SymbolicDim) -> str:
    return str(size) if isinstance(size, int) else str(size.value or "?")
