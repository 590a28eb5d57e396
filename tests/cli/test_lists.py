"""targets and passes: every built-in name is listed, with what a user needs to choose."""

import json

from qcompiler.passes import PASSES
from qcompiler.targets import TARGETS


def test_targets(run):
    shown = run("targets")
    assert (shown.code, shown.err) == (0, "")
    rows = {row["name"]: row for row in json.loads(run("targets", "--json").out)}
    assert set(TARGETS) <= set(rows)
    assert all(name in shown.out for name in TARGETS)
    assert "cortex-a53" in rows["arm"]["profiles"]
    assert rows["arm"]["default"] == "arm:cortex-a76"
    assert all(row["summary"] for row in rows.values())
    assert (rows["x86"]["weight_bits"], rows["x86"]["activation_bits"]) == ([8], [4, 8])
    assert "W8 A4/8" in shown.out


def test_passes(run):
    shown = run("passes")
    assert (shown.code, shown.err) == (0, "")
    rows = {row["name"]: row for row in json.loads(run("passes", "--json").out)}
    assert set(PASSES) <= set(rows)
    assert all(name in shown.out for name in PASSES)
    assert rows["calibrate"]["options"]["method"]
    assert {row["kind"] for row in rows.values()} == {"rewrite", "plan", "lower"}
    assert all(row["summary"] for row in rows.values())
