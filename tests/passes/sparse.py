"""Plans with pruned weights: a share of the codes is 0, and the plan says so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qcompiler.lowering import weight_codes
from qcompiler.model.edit import constant_of, values_by_name
from qcompiler.plan import Role
from qcompiler.quant.levels import Levels
from qcompiler.state import State


def pruned(state: State, sparsity: float, *, levels: Levels | None = None, only: str = "", seed: int = 0) -> State:
    """Return a state in which a share of the codes of every planned weight (or the one named) is 0, at random.

    With ``levels``, the weights have these levels, which must hold 0.
    """
    rng, entries, values = np.random.default_rng(seed), [], values_by_name(state.model)
    for entry in state.plan.tensors.values():
        if entry.role is not Role.WEIGHT or entry.scale is None or only not in ("", entry.name):
            continue
        known = entry if levels is None else replace(entry, levels=levels, codes=None)
        codes = weight_codes(constant_of(values[entry.name]), known).copy()
        codes[rng.random(codes.shape) < sparsity] = 0
        entries.append(replace(known, codes=codes, sparsity=float((codes == 0).mean())))
    return replace(state, plan=state.plan.with_tensors(*entries))
