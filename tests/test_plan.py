"""The plan: immutable, saved byte for byte the same, and refused where it is none."""

from __future__ import annotations

import json
import zipfile
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.errors import InputError, QCompileError
from qcompiler.plan import CompressionPlan, NodePlan, Precision, QuantSpec, Role, TensorPlan
from tests.compiling import planned
from tests.models import conv_net


def example() -> CompressionPlan:
    spec = QuantSpec(num_bits=8, signed=True, symmetric=True, axis=0)
    return (
        CompressionPlan(target="arm:cortex-a76")
        .with_nodes(
            NodePlan(name="b", op_type="Conv", precision=Precision.INTEGER, reason="why", decided_by=("place",)),
            NodePlan(name="a", op_type="If", precision=Precision.FLOAT),
        )
        .with_tensors(
            TensorPlan(
                name="w",
                role=Role.WEIGHT,
                spec=spec,
                scale=np.array([0.5, 0.25], np.float32),
                zero_point=np.zeros(2, np.int32),
                codes=np.array([[1, -2], [3, 127]], np.int8),
                clip=(-1.0, 1.0),
                error_db=41.23456,
                sparsity=0.25,
                encoding="bitmask",
                decided_by=("place", "scale-weights"),
                reason="largest magnitude",
            ),
            TensorPlan(name="x", role=Role.ACTIVATION, spec=QuantSpec(), scale=np.asarray(0.5, np.float32)),
            TensorPlan(name="b:bias", role=Role.BIAS, correction=np.array([0.1, -0.2])),
            TensorPlan(name="x:factors", role=Role.FACTORS, correction=np.ones(2)),
        )
        .with_choice("kept", "b")
    )


def assert_same(a: CompressionPlan, b: CompressionPlan) -> None:
    assert (a.target, a.choices, dict(a.nodes)) == (b.target, b.choices, dict(b.nodes))
    assert set(a.tensors) == set(b.tensors)
    for name, tensor in a.tensors.items():
        for field in fields(TensorPlan):
            mine, other = getattr(tensor, field.name), getattr(b.tensors[name], field.name)
            if isinstance(mine, np.ndarray):
                assert mine.dtype == other.dtype
                assert mine.shape == other.shape
                np.testing.assert_array_equal(mine, other)
            elif field.name == "error_db" and mine is not None:
                assert other == round(mine, 3)
            else:
                assert mine == other


def test_a_saved_plan_comes_back(tmp_path):
    example().save(tmp_path)
    assert_same(example(), CompressionPlan.load(tmp_path))


def test_the_plan_of_a_network_comes_back(tmp_path):
    state, _ = planned(conv_net(batch_norm=False))
    state.plan.save(tmp_path)
    assert_same(state.plan, CompressionPlan.load(tmp_path))


def test_equal_plans_are_equal_bytes(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    backwards = CompressionPlan(target="arm:cortex-a76", choices={"kept": "b"})
    backwards = backwards.with_nodes(*reversed(example().nodes.values()))
    backwards = backwards.with_tensors(*reversed(example().tensors.values()))
    for folder, plan in zip(folders, (example(), backwards), strict=True):
        folder.mkdir()
        plan.save(folder)
    for name in ("plan.json", "plan.npz"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_with_methods_leave_the_plan_alone():
    plan = CompressionPlan()
    plan.with_nodes(NodePlan(name="n", op_type="Conv", precision=Precision.FLOAT))
    plan.with_tensors(TensorPlan(name="t", role=Role.BIAS))
    plan.with_choice("a", "b")
    assert not plan.nodes
    assert not plan.tensors
    assert not plan.choices
    assert set(example().without_tensors(frozenset({"w", "nothing"})).tensors) == {"x", "b:bias", "x:factors"}


def test_activations_are_told_from_other_tensors():
    plan = example()
    assert plan.activation("x") is plan.tensors["x"]
    assert plan.activation("w") is None
    assert plan.activation("nowhere") is None


# -- grids ------------------------------------------------------------------------------------------------


@given(st.integers(2, 16), st.booleans(), st.booleans())
def test_the_codes_of_a_grid(bits, signed, symmetric):
    first, last = QuantSpec(num_bits=bits, signed=signed, symmetric=symmetric).code_range
    assert last - first + 1 == 2**bits - (signed and symmetric)
    assert (first < 0) == signed
    if signed and symmetric:
        assert first == -last


@pytest.mark.parametrize("bits", [0, 17])
def test_impossible_widths_are_refused(bits):
    with pytest.raises(QCompileError, match=str(bits)):
        QuantSpec(num_bits=bits)


def test_short_forms():
    assert QuantSpec().describe() == "u8"
    assert QuantSpec(num_bits=4, signed=True, axis=1).describe() == "s4 per channel (axis 1)"


# -- files that are no plan ---------------------------------------------------------------------------------


def damage(folder, change) -> None:
    document = json.loads((folder / "plan.json").read_text())
    change(document)
    (folder / "plan.json").write_text(json.dumps(document))


DAMAGES = {
    "schema": lambda d: d.update(schema="qcompile.plan/99"),
    "no nodes": lambda d: d.pop("nodes"),
    "precision": lambda d: d["nodes"][0].update(precision="tiny"),
    "bits": lambda d: d["tensors"][1].update(spec={"num_bits": 99, "signed": True, "symmetric": True, "axis": 0}),
    "spec": lambda d: d["tensors"][1].update(spec={"width": 3}),
    "array": lambda d: d["tensors"][1].update(scale="999999"),
    "clip": lambda d: d["tensors"][1].update(clip=[]),
    "list": lambda d: d.update(nodes=[3]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_documents_are_refused(tmp_path, name):
    example().save(tmp_path)
    damage(tmp_path, DAMAGES[name])
    with pytest.raises(InputError, match=str(tmp_path)):
        CompressionPlan.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"{", b"\xff\xfe"])
def test_other_files_are_refused(tmp_path, content):
    example().save(tmp_path)
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(InputError):
        CompressionPlan.load(tmp_path)


@pytest.mark.parametrize("keep", [0, 10, 200])
def test_truncated_arrays_are_refused(tmp_path, keep):
    example().save(tmp_path)
    content = (tmp_path / "plan.npz").read_bytes()
    (tmp_path / "plan.npz").write_bytes(content[:keep])
    with pytest.raises(InputError):
        CompressionPlan.load(tmp_path)


def test_pickles_are_refused(tmp_path):
    example().save(tmp_path)
    np.savez(tmp_path / "plan.npz", **{f"{i:06d}": np.array([{}], object) for i in range(9)})
    with pytest.raises(InputError):
        CompressionPlan.load(tmp_path)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="give a folder that qcompile wrote"):
        CompressionPlan.load(tmp_path / "nowhere")


def test_arrays_have_a_fixed_time_stamp(tmp_path):
    example().save(tmp_path)
    with zipfile.ZipFile(tmp_path / "plan.npz") as archive:
        assert {i.date_time for i in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
