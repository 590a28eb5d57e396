"""What every target on ONNX Runtime's CPU provider promises."""

from __future__ import annotations

import dataclasses

import pytest

from qcompiler.errors import UsageError
from qcompiler.passes import PASSES
from qcompiler.plan import Precision, QuantSpec
from qcompiler.protocols import OpRule, PassKind, Refusal, Target
from qcompiler.registry import load_target, make_pass
from qcompiler.runtime.ort_cpu import FLOAT_REASONS
from qcompiler.runtime.ort_needs import NEEDS
from qcompiler.targets.arm import PROFILES

ON_CPU = ("arm", "x86", "reference")
NAMES = [*ON_CPU, *(f"arm:{p}" for p in PROFILES)]
GRIDS = [
    None,
    QuantSpec(num_bits=8, signed=True, symmetric=True, axis=0),
    QuantSpec(num_bits=8, signed=True, symmetric=True, axis=1),
    QuantSpec(num_bits=8, signed=True, symmetric=True),
    QuantSpec(num_bits=4, signed=True, symmetric=True, axis=0),
    QuantSpec(num_bits=8),
]
every_target = pytest.mark.parametrize("name", NAMES)


@every_target
def test_it_is_a_frozen_target_of_its_name(name):
    target = load_target(name)
    assert isinstance(target, Target)
    assert target.full_name.startswith(name)
    assert target.summary.strip()
    assert load_target(target.full_name) == target
    with pytest.raises(dataclasses.FrozenInstanceError):
        target.profile = "other"


@every_target
def test_what_legalize_answers_is_in_the_table(name):
    target = load_target(name)
    ops = {r.op_type for r in target.rules()} | set(FLOAT_REASONS) | {"Erf"}
    for op in sorted(ops):
        for wanted in (Precision.INTEGER, Precision.MOVE, Precision.DYNAMIC):
            for grid in GRIDS:
                found = target.legalize(op, wanted, grid)
                if isinstance(found, Refusal):
                    assert found.reason
                else:
                    assert found in target.rules()
                    assert found.op_type == op
                    assert (found.precision is Precision.DYNAMIC) == (wanted is Precision.DYNAMIC)
                    assert grid is None or grid.num_bits <= 8


@every_target
def test_every_row_is_reachable(name):
    target = load_target(name)
    for rule in target.rules():
        grid = rule.weights[0] if rule.weights else None
        assert target.legalize(rule.op_type, rule.precision, grid) == rule


@every_target
def test_its_table_uses_the_portable_grids(name):
    for rule in load_target(name).rules():
        assert isinstance(rule, OpRule)
        assert all(not grid.signed and grid.num_bits == 8 for grid in rule.activations), "unsigned everywhere"
        assert all(grid.signed and grid.symmetric and grid.num_bits == 8 for grid in rule.weights)
        assert rule.needs in ("", *NEEDS)
        assert rule.precision in (Precision.INTEGER, Precision.MOVE, Precision.DYNAMIC)
        assert bool(rule.activations) or rule.precision is Precision.DYNAMIC


@every_target
def test_refusals_name_the_grid(name):
    found = load_target(name).legalize("Conv", Precision.INTEGER, QuantSpec(num_bits=16, signed=True, symmetric=True))
    assert isinstance(found, Refusal)
    assert "s16" in found.reason
    assert "s8 per channel (axis 0)" in found.reason


@every_target
def test_it_lowers_with_passes_that_exist(name):
    passes = load_target(name).lower_passes()
    assert set(passes) <= set(PASSES)
    assert all(make_pass(p).kind is PassKind.LOWER for p in passes)


@every_target
def test_its_artifacts_are_files_beside_the_model(name):
    for artifact in load_target(name).artifacts():
        assert "/" not in artifact
        assert artifact != "model.onnx"


def test_only_the_real_machine_executes(monkeypatch):
    import platform

    for machine, expected in (("x86_64", {"x86"}), ("AMD64", {"x86"}), ("aarch64", {"arm"}), ("riscv64", set())):
        monkeypatch.setattr(platform, "machine", lambda machine=machine: machine)
        assert {name for name in ON_CPU if load_target(name).executes_here} == expected


def test_plain_arm_is_the_middle_profile():
    assert load_target("arm").full_name == "arm:cortex-a76"
    with pytest.raises(UsageError, match="cortex-m4"):
        load_target("arm:cortex-m4")
    with pytest.raises(UsageError, match="it has no profiles"):
        load_target("x86:avx2")


def test_a_row_that_needs_what_nobody_checks_is_an_error():
    import onnx_ir as ir

    from qcompiler.errors import QCompileError
    from qcompiler.runtime.ort_needs import unmet_need

    node = ir.node("Relu", [ir.Value(name="x")])
    rule = OpRule(op_type="Relu", precision=Precision.INTEGER, needs="good weather")
    with pytest.raises(QCompileError, match="good weather"):
        unmet_need(node, rule)
