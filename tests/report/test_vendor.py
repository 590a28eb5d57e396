"""The vendored scripts: exactly what their authors published, with license and origin."""

from __future__ import annotations

import hashlib
import re
from importlib import resources

FOLDER = resources.files("qcompiler.report") / "vendor"
ROW = re.compile(
    r"^\| `(?P<file>[^`]+)` \| \[(?P<name>[^\]]+)\].* \| (?P<version>\S+) \| (?P<license>\S+) \| "
    r"`(?P<license_file>[^`]+)` \| `(?P<sha256>[0-9a-f]{64})` \|$",
    re.MULTILINE,
)


def rows() -> list[dict[str, str]]:
    return [found.groupdict() for found in ROW.finditer((FOLDER / "README.md").read_text())]


def test_every_script_is_listed_with_its_hash():
    listed = {row["file"]: row["sha256"] for row in rows()}
    present = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in FOLDER.iterdir() if p.name.endswith(".js")}
    assert present == listed


def test_every_script_has_its_license_text():
    for row in rows():
        text = (FOLDER / row["license_file"]).read_text()
        assert {"MIT": "Permission is hereby granted", "Unlicense": "public domain"}[row["license"]] in text


def test_nothing_else_lies_there():
    expected = {"README.md"} | {row[key] for row in rows() for key in ("file", "license_file")}
    assert {p.name for p in FOLDER.iterdir()} == expected


def test_the_chart_library_states_the_listed_version():
    (chart,) = [row for row in rows() if row["name"] == "chart.js"]
    assert f"Chart.js v{chart['version']}" in (FOLDER / chart["file"]).read_text()[:200]
