"""The compression plan: what was decided for every tensor and node, by whom and why.

The plan is made on the float graph and written into a graph only by the lowering passes. It is saved as
``plan.json`` (readable, diffable) beside ``plan.npz`` (arrays), and can be lowered again without a search.
"""

from __future__ import annotations

import enum
import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import InputError, QCompileError
from qcompiler.quant.grid import spread
from qcompiler.row_codes import RowCodes

PLAN_SCHEMA = "qcompile.plan/1"


class Precision(enum.StrEnum):
    """How a node is meant to run."""

    INTEGER = "integer"
    """Quantized inputs, weights and outputs: the runtime's integer kernel."""
    MOVE = "move"
    """Only moves quantized data; input and output share one scale."""
    DYNAMIC = "dynamic"
    """Integer weights, activations quantized at run time."""
    BLOCKWISE = "blockwise"
    """Integer weights with a scale for every few inputs, decoded inside the runtime's kernel."""
    WEIGHT_ONLY = "weight_only"
    """Integer weights in the file, decoded once at session load; float arithmetic."""
    FLOAT = "float"


class Role(enum.StrEnum):
    """What a planned tensor is."""

    WEIGHT = "weight"
    ACTIVATION = "activation"
    BIAS = "bias"
    TABLE = "table"
    """Rows that are decoded when they are looked up, each with its own number of bits."""
    FACTORS = "factors"
    """Channel factors that a rewrite moved between layers, kept so that it can be repeated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantSpec:
    """A uniform integer grid: width, sign and where its scales live.

    Attributes:
        num_bits: width of a stored code in bits, 1 to 16.
        signed: codes are signed (symmetric weights) or unsigned (activations).
        symmetric: the zero point is fixed (0 if signed).
        axis: the axis with one scale per index; None means one scale for the whole tensor.
        block_size: with an axis, of a matrix: so many neighbours along the other axis share a scale; None means all.
    """

    num_bits: int = 8
    signed: bool = False
    symmetric: bool = False
    axis: int | None = None
    block_size: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.num_bits <= 16:
            raise QCompileError(f"num_bits must be between 1 and 16, got {self.num_bits}")
        if self.block_size is not None and (self.axis is None or self.block_size < 1):
            raise QCompileError(f"blocks of {self.block_size} need an axis, and at least one element")

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest code. Signed symmetric grids leave out the lowest code, so that -x is a code."""
        if not self.signed:
            return 0, 2**self.num_bits - 1
        top = 2 ** (self.num_bits - 1) - 1
        return (-top if self.symmetric else -top - 1), top

    def describe(self) -> str:
        """Return the field's short form, such as ``u8`` or ``s8 per channel (axis 0)``."""
        where = "" if self.axis is None else f" per channel (axis {self.axis})"
        where += "" if self.block_size is None else f" in blocks of {self.block_size}"
        return f"{'s' if self.signed else 'u'}{self.num_bits}{where}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TensorPlan:
    """The decision for one tensor of the float graph.

    Attributes:
        name: value name in the float graph; unique over all subgraphs.
        role: weight, activation or bias.
        spec: the integer grid; None for a bias, which stays float, and for factors.
        scale: float32, shape () or (channels,), or (channels, blocks) where ``spec`` has a block size; None until it
            is chosen, and where ``spec`` is None.
        zero_point: integer of the grid, same shape as ``scale``.
        codes: integer codes in the tensor's shape, only where they are not the nearest rounding.
        levels: sorted int8 of shape (at most 2**num_bits,), the values that codes take, for weights below 8 bits;
            None is the whole range of ``spec``.
        sparsity: share of the weights (0 to 1) that were pruned: their codes are 0 and stay so; the mask is
            ``codes != 0``. None for a weight that was not pruned. A pruned weight has symmetric ``codes``, and
            levels only if 0 is one of them.
        encoding: how the file stores the codes: the name of a sparse format, or of an XOR network that makes them
            (``codec.xor_weights``), such as ``xor 12/15``; None is as they are.
        correction: float64 of shape (channels,): what to add to a bias, or the factors of FACTORS.
        rows: what a TABLE stores of its rows; its ``spec`` and ``scale`` are None.
        clip: the real-valued range the grid covers, (low, high), for reports.
        error_db: SQNR of the quantized tensor against the float one, in dB, where it was computed.
        decided_by: the passes that touched this entry, in order.
        reason: why this choice, one line.
    """

    name: str
    role: Role
    spec: QuantSpec | None = None
    scale: NDArray[np.float32] | None = None
    zero_point: NDArray[np.int32] | None = None
    codes: NDArray[np.int8] | None = None
    levels: NDArray[np.int8] | None = None
    sparsity: float | None = None
    encoding: str | None = None
    correction: NDArray[np.float64] | None = None
    rows: RowCodes | None = None
    clip: tuple[float, float] | None = None
    error_db: float | None = None
    decided_by: tuple[str, ...] = ()
    reason: str = ""

    @property
    def bound(self) -> bool:
        """Return True for a weight whose codes cannot be moved one by one: zeros stay, or bits depend on each other."""
        return self.sparsity is not None or self.encoding is not None

    def grid(self, shape: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Return scale and zero point for a tensor of a shape; those of blocks are repeated for every element.

        Raises:
            QCompileError: there is no grid yet.
        """
        if self.spec is None or self.scale is None or self.zero_point is None:
            raise QCompileError(f"weight '{self.name}' is planned without a grid")
        if self.spec.block_size is None:
            return self.scale, self.zero_point
        size, axis = self.spec.block_size, self.spec.axis
        return spread(self.scale, axis, size, shape), spread(self.zero_point, axis, size, shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlan:
    """How one node is meant to run, and why."""

    name: str
    op_type: str
    precision: Precision
    reason: str = ""
    decided_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionPlan:
    """All decisions; immutable, every ``with_`` method returns a new plan."""

    target: str = ""
    tensors: Mapping[str, TensorPlan] = field(default_factory=dict)
    nodes: Mapping[str, NodePlan] = field(default_factory=dict)
    choices: Mapping[str, str] = field(default_factory=dict)
    """Decisions that rest on a measurement of this machine, replayed by ``--plan``."""

    def with_tensors(self, *tensors: TensorPlan) -> CompressionPlan:
        """Return a plan in which these tensors are added or replaced."""
        return replace(self, tensors={**self.tensors, **{t.name: t for t in tensors}})

    def with_nodes(self, *nodes: NodePlan) -> CompressionPlan:
        """Return a plan in which these nodes are added or replaced."""
        return replace(self, nodes={**self.nodes, **{n.name: n for n in nodes}})

    def with_choice(self, key: str, value: str) -> CompressionPlan:
        """Return a plan that records one measured decision."""
        return replace(self, choices={**self.choices, key: value})

    def signed(self, name: str, before: CompressionPlan) -> CompressionPlan:
        """Return the plan with the name of a pass on every tensor's entry that it changed."""
        changed = [t for k, t in self.tensors.items() if before.tensors.get(k) is not t]
        return self.with_tensors(*(replace(t, decided_by=(*t.decided_by, name)) for t in changed))

    def without_tensors(self, names: frozenset[str]) -> CompressionPlan:
        """Return a plan in which these tensors have no entry (they stay float)."""
        return replace(self, tensors={k: v for k, v in self.tensors.items() if k not in names})

    @property
    def compresses(self) -> bool:
        """True if at least one weight is to be stored in integers."""
        stored = (t.rows is not None or (t.role is Role.WEIGHT and t.scale is not None) for t in self.tensors.values())
        return any(stored)

    def activation(self, name: str) -> TensorPlan | None:
        """Return the activation entry of a value, or None if it stays float."""
        found = self.tensors.get(name)
        return found if found is not None and found.role is Role.ACTIVATION else None

    def save(self, folder: Path) -> None:
        """Write ``plan.json`` and ``plan.npz`` into a folder, byte for byte the same for the same plan."""
        text, arrays = self._as_text()
        (folder / "plan.json").write_text(text + "\n", encoding="utf-8")
        save_npz(folder / "plan.npz", arrays)

    def digest(self) -> str:
        """Return the SHA-256 of everything that ``save`` would write, as 64 hexadecimal digits."""
        text, arrays = self._as_text()
        found = hashlib.sha256(text.encode("utf-8"))
        for name, array in arrays.items():
            found.update(f"{name} {array.dtype} {array.shape}".encode())
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()

    def _as_text(self) -> tuple[str, dict[str, NDArray[Any]]]:
        """Return the plan as JSON text, and the arrays that it refers to by name."""
        arrays: dict[str, NDArray[Any]] = {}
        document = {
            "schema": PLAN_SCHEMA,
            "target": self.target,
            "choices": dict(sorted(self.choices.items())),
            "nodes": [_node_to_json(self.nodes[k]) for k in sorted(self.nodes)],
            "tensors": [_tensor_to_json(self.tensors[k], arrays) for k in sorted(self.tensors)],
        }
        return json.dumps(document, indent=1, sort_keys=True, allow_nan=False), arrays

    @classmethod
    def load(cls, folder: Path) -> CompressionPlan:
        """Read a plan from a folder that ``save`` wrote.

        Raises:
            InputError: the folder holds no plan of a known schema.
        """
        try:
            document = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
            with (folder / "plan.npz").open("rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays = {k: archive[k] for k in archive.files}
            if document.get("schema") != PLAN_SCHEMA:
                raise InputError(f"{folder}: plan schema is {document.get('schema')!r}, expected {PLAN_SCHEMA!r}")
            return cls(
                target=document["target"],
                choices=document["choices"],
                nodes={n["name"]: _node_from_json(n) for n in document["nodes"]},
                tensors={t["name"]: _tensor_from_json(t, arrays) for t in document["tensors"]},
            )
        except InputError:
            raise
        except _UNREADABLE as error:
            raise InputError(f"{folder}: not a saved plan ({error}); give a folder that qcompile wrote") from error


_UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, IndexError),
    *(zipfile.BadZipFile, zlib.error, QCompileError),
)
"""What a file may raise that looks like a plan and is none."""

_ARRAY_FIELDS = ("scale", "zero_point", "codes", "levels", "correction")


def save_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as an ``.npz`` with fixed time stamps, so that equal arrays give equal bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(arrays):
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(arrays[name]).reshape(arrays[name].shape))
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), buffer.getvalue())


def _node_to_json(node: NodePlan) -> dict[str, Any]:
    return {
        "name": node.name,
        "op_type": node.op_type,
        "precision": str(node.precision),
        "reason": node.reason,
        "decided_by": list(node.decided_by),
    }


def _node_from_json(entry: dict[str, Any]) -> NodePlan:
    return NodePlan(
        name=entry["name"],
        op_type=entry["op_type"],
        precision=Precision(entry["precision"]),
        reason=entry["reason"],
        decided_by=tuple(entry["decided_by"]),
    )


def _tensor_to_json(tensor: TensorPlan, arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": tensor.name, "role": str(tensor.role), "reason": tensor.reason}
    entry["decided_by"] = list(tensor.decided_by)
    if tensor.spec is not None:
        spec = tensor.spec
        entry["spec"] = {"num_bits": spec.num_bits, "signed": spec.signed, "symmetric": spec.symmetric}
        entry["spec"]["axis"] = spec.axis
        if spec.block_size is not None:
            entry["spec"]["block_size"] = spec.block_size
    if tensor.clip is not None:
        entry["clip"] = [float(v) for v in tensor.clip]
    if tensor.error_db is not None:
        entry["error_db"] = round(tensor.error_db, 3)
    if tensor.sparsity is not None:
        entry["sparsity"] = float(tensor.sparsity)
    if tensor.encoding is not None:
        entry["encoding"] = tensor.encoding
    for name in _ARRAY_FIELDS:
        array = getattr(tensor, name)
        if array is not None:
            key = f"{len(arrays):06d}"
            arrays[key] = array
            entry[name] = key
    if tensor.rows is not None:
        entry["rows"] = _rows_to_json(tensor.rows, arrays)
    return entry


def _rows_to_json(rows: RowCodes, arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    named = rows.to_arrays()
    keys = {name: f"{len(arrays) + number:06d}" for number, name in enumerate(named)}
    arrays.update((keys[name], array) for name, array in named.items())
    return {"kind": str(rows.kind), "arrays": keys}


def _rows_from_json(entry: dict[str, Any] | None, arrays: dict[str, NDArray[Any]]) -> RowCodes | None:
    if entry is None:
        return None
    return RowCodes.from_arrays(entry["kind"], {name: arrays[key] for name, key in entry["arrays"].items()})


def _tensor_from_json(entry: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> TensorPlan:
    return TensorPlan(
        name=entry["name"],
        role=Role(entry["role"]),
        reason=entry["reason"],
        decided_by=tuple(entry["decided_by"]),
        spec=QuantSpec(**entry["spec"]) if "spec" in entry else None,
        clip=(entry["clip"][0], entry["clip"][1]) if "clip" in entry else None,
        error_db=entry.get("error_db"),
        sparsity=entry.get("sparsity"),
        encoding=entry.get("encoding"),
        scale=arrays[entry["scale"]] if "scale" in entry else None,
        zero_point=arrays[entry["zero_point"]] if "zero_point" in entry else None,
        codes=arrays[entry["codes"]] if "codes" in entry else None,
        levels=arrays[entry["levels"]] if "levels" in entry else None,
        correction=arrays[entry["correction"]] if "correction" in entry else None,
        rows=_rows_from_json(entry.get("rows"), arrays),
    )
