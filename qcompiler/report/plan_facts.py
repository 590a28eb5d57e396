"""The half of the quantization card that is read from the plan: weights, activations and layers left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from qcompiler.plan import CompressionPlan, NodePlan, Precision, QuantSpec, Role, TensorPlan
from qcompiler.recipe import Recipe
from qcompiler.records import PassReport
from qcompiler.report.document import is_measured
from qcompiler.report.words import count, printable

COMPUTE_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN", "Attention"})
"""Operators that multiply by a matrix; the rest are "operators beside matrix products" on the card."""
RECTIFIERS = frozenset({"Relu", "Clip", "LeakyRelu", "PRelu", "HardSwish", "HardSigmoid"})
CHOOSERS = ("allocate-bits", "repair")
"""Who chooses widths where the recipe leaves them open."""
GRADIENTS = ("fine-tune", "reconstruct-blocks")
"""Passes that train what the plan stores."""
NO_WEIGHTS = "Does not apply: no weight is stored in integers."
NO_ACTIVATIONS = "Does not apply: no activation has a fixed integer range"
_HOW = {
    Precision.INTEGER: "in integers",
    Precision.MOVE: "moving codes",
    Precision.DYNAMIC: "in integers with ranges found at run time",
    Precision.BLOCKWISE: "with integer weights decoded block by block in the kernel",
    Precision.WEIGHT_ONLY: "in float with integer weights in the file",
    Precision.FLOAT: "in float",
}


def tally(items: Iterable[str]) -> str:
    """Return how often each text occurs, most frequent first: ``Conv 26, Gemm 1``."""
    return ", ".join(f"{printable(name)} {n:,}" for name, n in Counter(items).most_common())


def pass_text(report: PassReport) -> str:
    """Return a pass with its options: ``calibrate (method=mse)``."""
    options = ", ".join(f"{k}={v}" for k, v in report.options.items())
    return printable(f"{report.name} ({options})" if options else report.name)


def trainings(passes: Iterable[PassReport]) -> list[PassReport]:
    """Return the passes that trained something."""
    return [p for p in passes if p.name in GRADIENTS and p.changed]


@dataclass(frozen=True, slots=True)
class PlanFacts:
    """A plan with what is needed to explain it. Every method returns one answer of the card.

    Attributes:
        plan: the decisions; its nodes are in graph order.
        passes: what ran, in order.
        recipe: what was asked.
        mean_bits: mean width of the weights whose width was chosen, by stored bytes; None where none was.
    """

    plan: CompressionPlan
    passes: Sequence[PassReport]
    recipe: Recipe
    mean_bits: float | None = None

    def weight_bits(self) -> str:
        """Return the widths of the stored weights."""
        specs = _specs(self._weights)
        if not specs:
            return NO_WEIGHTS
        return f"{_widths(specs)}. Whole numbers of bits, from the widths the target runs."

    def weight_granularity(self) -> str:
        """Return how many weights share a scale."""
        if not _specs(self._weights):
            return NO_WEIGHTS
        return f"{_granularity(self._weights)}; {count(_scales(self._weights), 'scale')} in all."

    def weight_symmetry(self) -> str:
        """Return whether weight grids are symmetric, and their code ranges."""
        specs = _specs(t for t in self._weights if t.levels is None)
        parts = [_symmetry(specs)] if specs else []
        parts += _levels_text(self._weights)
        return f"{'; '.join(parts)}." if parts else NO_WEIGHTS

    def weight_clipping(self) -> str:
        """Return which passes chose the ranges of the weights."""
        weights = self._weights
        if not weights:
            return NO_WEIGHTS
        codes = sum(t.codes is not None for t in weights)
        rounding = (
            f"{count(codes, 'tensor')} with codes chosen by a search" if codes else "all codes rounded to nearest"
        )
        names = ", ".join(p.name for p in self._training)
        learned = f"learned by gradients in {names}" if names else "not learned by gradients"
        return f"Ranges chosen by {self._deciders(weights)}; {learned}; {rounding}."

    def weight_correction(self) -> str:
        """Return whether means or variances are corrected."""
        corrected = sum(t.correction is not None for t in self._tensors(Role.BIAS))
        if corrected:
            by = self._deciders(self._tensors(Role.BIAS))
            biases = count(corrected, "bias", "biases")
            return f"Mean: {biases} with a correction, by {by}. Variance: not corrected."
        skipped = [p for p in self.recipe.skip_passes if "bias" in p]
        why = f" ({', '.join(skipped)} was switched off)" if skipped else ""
        return f"None: no bias carries a correction{why}; the variance of the weights is not corrected."

    def bit_assignment(self) -> str:
        """Return at which granularity widths were assigned, and how an average would be weighted."""
        specs = _specs(self._weights)
        if not specs:
            return NO_WEIGHTS
        asked = len(self.recipe.rules)
        rules = f"{count(asked, 'rule')} by name in the recipe" if asked else "no rule by name in the recipe"
        widths = sorted({s.num_bits for s in specs})
        if len(widths) == 1:
            return f"Per tensor, {rules}; every one got {widths[0]} bits, so an average needs no weighting."
        every = f"Per tensor, {rules}; widths {', '.join(map(str, widths))}"
        if self.mean_bits is None:
            return f"{every}; no average is stated."
        by = " and ".join(n for n in CHOOSERS if any(n in t.decided_by for t in self._weights))
        return f"{every}, chosen by {by}; {self.mean_bits:.2f} bits on average, weighted by the numbers in each tensor."

    def activation_bits(self) -> str:
        """Return the widths of the quantized activations."""
        specs = _specs(self._activations)
        return self._also_dynamic(f"{_widths(specs)}." if specs else self._no_activations())

    def activation_symmetry(self) -> str:
        """Return whether activation grids are symmetric."""
        specs = _specs(self._activations)
        return f"{_symmetry(specs)}." if specs else self._no_activations()

    def activation_granularity(self) -> str:
        """Return whether activations have scales per tensor or per channel."""
        if not _specs(self._activations):
            return self._no_activations()
        equalized = [p.name for p in self.passes if "equal" in p.name and p.changed]
        folded = f" Channel scales were folded into the weights by {', '.join(equalized)}." if equalized else ""
        return f"{_granularity(self._activations)}.{folded}"

    def activation_observer(self) -> str:
        """Return which passes chose the ranges of the activations."""
        activations = self._activations
        if not activations:
            return self._no_activations()
        return self._also_dynamic(f"Fixed ranges, chosen by {self._deciders(activations)}.")

    def rectifiers(self) -> str:
        """Return whether ranges are placed before or after the activation functions."""
        nodes = [n for n in self.plan.nodes.values() if n.op_type in RECTIFIERS]
        if not _specs(self._activations):
            return self._no_activations()
        if not nodes:
            return "Does not apply: the model has no Relu, Clip or similar node."
        fused = sum(n.precision in (Precision.INTEGER, Precision.MOVE) for n in nodes)
        floor = sum(t.clip is not None and t.clip[0] == 0 for t in self._activations)
        return (
            f"After, where the function is fused into integers: {fused} of {count(len(nodes), 'node')} "
            f"({tally(n.op_type for n in nodes)}). {count(floor, 'activation range')} of "
            f"{len(self._activations):,} start at 0."
        )

    def which_tensors(self) -> str:
        """Return which values are quantized, residual sums named apart."""
        if not _specs(self._activations):
            return self._no_activations()
        sums = [n for n in self.plan.nodes.values() if n.op_type == "Add"]
        residual = f"Add nodes: {_by_precision(sums)}" if sums else "there is no Add node"
        return (
            f"{count(len(self._activations), 'value')}: what the integer nodes read and write, by the plan, "
            f"not by kind; {residual}."
        )

    def other_operators(self) -> str:
        """Return how operators beside matrix products run."""
        nodes = [n for n in self.plan.nodes.values() if n.op_type not in COMPUTE_OPS]
        if not nodes:
            return "Does not apply: the plan lists no operator beside matrix products."
        parts = []
        for precision, text in _HOW.items():
            chosen = [n.op_type for n in nodes if n.precision is precision]
            if chosen:
                parts.append(f"{text}: {tally(chosen)}")
        text = "; ".join(parts)
        return text[0].upper() + text[1:] + "."

    def first_and_last(self) -> str:
        """Return how the first and the last matrix product are treated."""
        nodes = self._compute
        if not nodes:
            return "Does not apply: the plan lists no matrix product."
        first, last = nodes[0], nodes[-1]
        text = f"No rule of their own. First ({_node_text(first)}); last ({_node_text(last)})"
        return f"{text}: the same node." if first is last else f"{text}."

    def shortcuts(self) -> str:
        """Return how shortcut and downsample layers are treated."""
        if not self._compute:
            return "Does not apply: the plan lists no matrix product."
        left = [n for n in self._compute if n.precision in (Precision.FLOAT, Precision.WEIGHT_ONLY)]
        reasons = tally(n.reason or "no reason recorded" for n in left)
        why = f" Left in float: {count(len(left), 'node')} ({reasons})." if left else " None is left in float."
        return f"No rule of their own; matrix products: {_by_precision(self._compute)}.{why}"

    def batch_norm(self) -> str:
        """Return whether BatchNorm was folded, and whether its statistics were estimated again."""
        folds = [p for p in self.passes if "batch-norm" in p.name]
        if not folds:
            return "Not folded: no such pass ran. Statistics are not estimated again."
        done = "folded" if any(p.changed for p in folds) else "nothing to fold was found"
        figures = "; ".join(
            f"{m.name} {m.value:g} {m.unit}".strip()
            for p in folds
            for m in p.metrics
            if not is_measured(m.name, m.unit)
        )
        detail = f" ({printable(figures)})" if figures else ""
        by = ", ".join(map(pass_text, folds))
        return f"Before quantization, by {by}: {done}{detail}. Statistics are not estimated again."

    def fine_tuning(self) -> str:
        """Return what was trained and how, or that nothing was and what was searched instead."""
        codes = sum(t.codes is not None for t in self.plan.tensors.values())
        if self._training:
            by = ", ".join(map(pass_text, self._training))
            return f"By distillation from the original, on samples without labels: {by}."
        searched = f"; a search chose the codes of {count(codes, 'tensor')}" if codes else ""
        return f"None: no pass trains weights or ranges; no steps, optimizer or learning rate{searched}."

    @property
    def _training(self) -> list[PassReport]:
        return trainings(self.passes)

    @property
    def _weights(self) -> list[TensorPlan]:
        return self._tensors(Role.WEIGHT)

    @property
    def _activations(self) -> list[TensorPlan]:
        return self._tensors(Role.ACTIVATION)

    @property
    def _compute(self) -> list[NodePlan]:
        return [n for n in self.plan.nodes.values() if n.op_type in COMPUTE_OPS]

    def _tensors(self, role: Role) -> list[TensorPlan]:
        return [t for t in self.plan.tensors.values() if t.role is role and (t.spec or role is Role.BIAS)]

    def _deciders(self, tensors: Sequence[TensorPlan]) -> str:
        """Return the passes that decided about these tensors, with options, and how many each touched."""
        options = {p.name: pass_text(p) for p in self.passes}
        touched = Counter(name for t in tensors for name in dict.fromkeys(t.decided_by))
        parts = [f"{options.get(name, printable(name))} on {count(n, 'tensor')}" for name, n in touched.items()]
        return ", ".join(parts) or "the plan that was given"

    def _dynamic(self) -> int:
        return sum(n.precision is Precision.DYNAMIC for n in self.plan.nodes.values())

    def _no_activations(self) -> str:
        dynamic = self._dynamic()
        return f"{NO_ACTIVATIONS}." if not dynamic else f"{NO_ACTIVATIONS}; see the observer."

    def _also_dynamic(self, text: str) -> str:
        dynamic = self._dynamic()
        return f"{text} {count(dynamic, 'node')}: 8 bits, range found per run." if dynamic else text


def _specs(tensors: Iterable[TensorPlan]) -> list[QuantSpec]:
    return [t.spec for t in tensors if t.spec is not None]


def _counted(specs: Sequence[QuantSpec], describe: Callable[[QuantSpec], str]) -> str:
    found = Counter(describe(s) for s in specs)
    return "; ".join(f"{text}: {count(n, 'tensor')}" for text, n in found.most_common())


def _widths(specs: Sequence[QuantSpec]) -> str:
    return _counted(specs, lambda s: f"{s.num_bits} bits {'signed' if s.signed else 'unsigned'}")


def _granularity(tensors: Sequence[TensorPlan]) -> str:
    return _counted(
        _specs(tensors),
        lambda s: "One scale per tensor" if s.axis is None else f"One scale per channel (axis {s.axis})",
    )


def _symmetry(specs: Sequence[QuantSpec]) -> str:
    def describe(spec: QuantSpec) -> str:
        low, high = spec.code_range
        return f"{'Symmetric' if spec.symmetric else 'Asymmetric (with zero point)'}, codes {low}..{high}"

    return _counted(specs, describe)


def _levels_text(tensors: Sequence[TensorPlan]) -> list[str]:
    """Return how many levels weights of few bits have, whether mirrored at 0, and the ends of the widest table."""
    groups: dict[tuple[bool, int], list[list[int]]] = {}
    for tensor in tensors:
        if tensor.levels is not None:
            found = tensor.levels.tolist()
            mirrored = found == [-level for level in reversed(found)]
            groups.setdefault((mirrored, len(found)), []).append(found)
    parts = []
    for (mirrored, size), tables in sorted(groups.items(), key=lambda g: (-len(g[1]), g[0])):
        within = "" if all(t == tables[0] for t in tables) else "within "
        ends = f"{min(t[0] for t in tables)}..{max(t[-1] for t in tables)}"
        kind = "Symmetric" if mirrored else "Asymmetric"
        parts.append(f"{kind}, {size} levels {within}{ends}: {count(len(tables), 'tensor')}")
    return parts


def _scales(tensors: Sequence[TensorPlan]) -> int:
    return sum(t.scale.size for t in tensors if t.scale is not None)


def _by_precision(nodes: Sequence[NodePlan]) -> str:
    found = Counter(n.precision for n in nodes)
    return ", ".join(f"{found[p]:,} {text}" for p, text in _HOW.items() if found[p])


def _node_text(node: NodePlan) -> str:
    return f"{node.op_type} {printable(node.name)!r} runs {_HOW[node.precision]}"
