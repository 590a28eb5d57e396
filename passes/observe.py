"""observe: run the float model over the calibration samples and keep streaming statistics."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompiler.errors import DataError
from qcompiler.model.edit import values_by_name
from qcompiler.plan import Precision, Role
from qcompiler.protocols import PassKind, PassResult
from qcompiler.quant.histogram import StreamingStatistics
from qcompiler.records import Metric, PassReport
from qcompiler.runtime.capture import stream
from qcompiler.state import Context, Fact, State


def _weight_only_inputs(state: State) -> list[str]:
    """Return the inputs of layers that compute in float with rounded weights: a bias correction wants their mean."""
    found = []
    for node in state.model.graph:
        decision = state.plan.nodes.get(node.name or "")
        value = node.inputs[0] if node.inputs else None
        if decision is None or decision.precision is not Precision.WEIGHT_ONLY or node.op_type not in ("Conv", "Gemm"):
            continue
        if value is not None and value.const_value is None and value.name not in found:
            found.append(value.name or "")
    return found


def _channel_axis(value: ir.Value) -> int | None:
    """Return 1 for what convolutions make and read, whatever its rank, else None."""
    nodes = [use.node for use in value.uses()]
    producer = value.producer()
    nodes += [producer] if producer is not None else []
    return 1 if any(node.op_type == "Conv" for node in nodes) else None


@dataclass(frozen=True, slots=True)
class Observe:
    """Collects range, histogram and channel sums of every activation that is to get a grid.

    One sample is in memory at a time, whatever the calibration method.
    """

    name: ClassVar[str] = "observe"
    kind: ClassVar[PassKind] = PassKind.PLAN
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLACEMENT})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.STATISTICS})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.RANGES})

    def run(self, state: State, context: Context) -> PassResult:
        """Return the state with statistics of every planned activation.

        Raises:
            DataError: there are no calibration samples, or the model turns one into NaN or infinity.
        """
        samples = context.calibration
        if samples is None:
            raise DataError("pass 'observe' needs calibration samples; give --data or use 'estimate-statistics'")
        names = [t.name for t in state.plan.tensors.values() if t.role is Role.ACTIVATION]
        names += [n for n in _weight_only_inputs(state) if n not in names]
        values_of = values_by_name(state.model)
        collected = {name: StreamingStatistics(_channel_axis(values_of[name])) for name in names}
        count = 0
        if names:
            for values in stream(
                state.model,
                names,
                samples,
                threads=context.recipe.threads,
                progress=lambda done, total: context.progress("observing activations", done, total),
            ):
                for name, array in values.items():
                    if not np.isfinite(array).all():
                        raise DataError(
                            f"value '{name}' is not finite for sample {count} of {samples.source}; "
                            "leave that sample out or keep the node in float"
                        )
                    collected[name].add(np.asarray(array, np.float32))
                count += 1
        statistics = {name: c.result() for name, c in collected.items() if c.samples}
        constant = tuple(f"'{n}' is constant over all samples" for n, s in statistics.items() if s.low == s.high)
        report = PassReport(
            name=self.name,
            changed=bool(statistics),
            metrics=(Metric("samples", count, "samples"), Metric("observed", len(statistics), "activations")),
            notes=constant,
        )
        return PassResult(replace(state, statistics={**state.statistics, **statistics}), report)
