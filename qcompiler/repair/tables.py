"""What embedding tables with few bits a row cost, beside the layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from qcompiler.model.edit import constant_of
from qcompiler.plan import Role, TensorPlan
from qcompiler.records import LayerDamage
from qcompiler.row_search import RowProblem, grid_block, grid_codes
from qcompiler.state import State

FULL = 8
CLEAR_DB = 0.1


def table_damages(state: State, trial: Callable[[State], float], level: float) -> list[LayerDamage]:
    """Return what the SQNR on the acceptance samples gains when all rows of one table alone have 8 bits.

    Tables that no grid of the runtime fits are left out.

    Args:
        state: completely planned.
        trial: returns the SQNR of a state, in dB.
        level: that of this state.
    """
    found = []
    for entry in state.plan.tensors.values():
        node = next((n for n in state.model.graph if n.op_type == "Gather" and _reads(n, entry.name)), None)
        if entry.role is not Role.TABLE or entry.rows is None or node is None:
            continue
        full = _at_full_width(node, entry)
        if full is None or entry.rows.bits.min(initial=FULL) >= FULL:
            continue
        gain = trial(replace(state, plan=state.plan.with_tensors(full))) - level
        cause = "few bits a row: more with --embedding-bits" if gain > CLEAR_DB else "little of its own"
        bits = round(float(entry.rows.bits.mean()))
        found.append(LayerDamage(name=node.name or "", bits=bits, damage_db=gain, cause=cause))
    return found


def _reads(node: ir.Node, name: str) -> bool:
    return node.inputs[0] is not None and node.inputs[0].name == name


def _at_full_width(node: ir.Node, entry: TensorPlan) -> TensorPlan | None:
    array = constant_of(node.inputs[0])
    if array is None or array.ndim != 2 or not grid_block(array.shape[1]):
        return None
    rows, columns = array.shape
    problem = RowProblem(np.asarray(array, np.float32), np.ones(rows), np.eye(columns))
    return replace(entry, rows=grid_codes(problem, FULL))
