"""Which widths of codes a target takes: what a recipe asks, held against what the target says."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from qcompiler.errors import UsageError
from qcompiler.plan import QuantSpec
from qcompiler.protocols import OpRule, Target
from qcompiler.recipe import Recipe

USUAL = 8


def check_bits(target: Target, recipe: Recipe) -> None:
    """Check that a target takes the widths that a recipe asks for.

    Raises:
        UsageError: it does not; the message names the widths that it takes.
    """
    name = target.full_name
    weights, activations = target.weight_bits, target.activation_bits
    instead = f"W{_taken(recipe.weight_bits, weights)}A{_taken(recipe.activation_bits, activations)}"
    advice = f"Use --bits {instead} or another target"
    if recipe.weight_bits not in weights:
        raise UsageError(_refusal(name, recipe.weight_bits, "weights", weights, advice))
    if recipe.activation_bits not in activations:
        raise UsageError(_refusal(name, recipe.activation_bits, "activations", activations, advice))
    for rule in recipe.rules:
        if rule.num_bits is not None and rule.num_bits not in weights:
            why = _refusal(name, rule.num_bits, "weights", weights, "Set bits to one of these, or use another target")
            raise UsageError(f'[match."{rule.pattern}"]: {why}')


def check_pattern(target: Target, recipe: Recipe) -> None:
    """Check that a target runs the pattern of zeros that a recipe asks for.

    Raises:
        UsageError: it does not.
    """
    asked = recipe.sparsity
    if asked is None or asked.pattern is None:
        return
    known: AbstractSet[str] = getattr(target, "sparse_patterns", frozenset())
    if str(asked) not in known:
        runs = f"it runs {', '.join(sorted(known))}" if known else "its kernels read dense weights"
        raise UsageError(
            f"target '{target.full_name}' runs no {asked} sparsity: {runs}. Use --sparsity {asked.share:g}, which "
            "saves bytes of the file, or another target"
        )


def looks_up_levels(target: Target) -> bool:
    """Return whether weights of few bits may take any int8 values on a target, because it looks their levels up.

    On others they are what their type of few bits holds: integers around 0.
    """
    return "pack-bits" in target.lower_passes()


def unfit_activations(rule: OpRule, wanted: QuantSpec) -> str:
    """Return why a table row does not run activations of a grid, or ""; narrower codes are codes of a wider grid."""
    if not rule.activations or any(wanted.num_bits <= grid.num_bits for grid in rule.activations):
        return ""
    runs = ", ".join(grid.describe() for grid in rule.activations)
    return f"{rule.op_type} with {wanted.describe()} activations has no integer kernel; it has {runs}"


def _taken(wanted: int, known: AbstractSet[int]) -> int:
    return wanted if wanted in known else USUAL if USUAL in known else max(known)


def _refusal(name: str, wanted: int, what: str, known: AbstractSet[int], advice: str) -> str:
    runs = " and ".join(", ".join(map(str, sorted(known))).rsplit(", ", 1))
    return f"target '{name}' runs no {wanted}-bit {what}; it runs {runs}. {advice}"
