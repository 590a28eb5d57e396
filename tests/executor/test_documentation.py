"""docs/executor.md lists the operators of the table."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("torch")

from qcompiler.executor.operators import OPERATORS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "executor.md"
MARK = "<!-- operators -->\n"


def test_the_page_lists_every_operator():
    listed = textwrap.fill(", ".join(sorted(OPERATORS)) + ".", 118)
    head, _, found = PAGE.read_text(encoding="utf-8").partition(MARK)
    if os.environ.get("QCOMPILER_UPDATE_DOCS") == "1":
        found = f"\n{listed}\n"
        PAGE.write_text(head + MARK + found, encoding="utf-8")
    assert found.strip() == listed, "set QCOMPILER_UPDATE_DOCS=1 to write it again"
