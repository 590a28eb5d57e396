"""Links lead somewhere, lists are complete, and figures are those of the code."""

import json
import re

import pytest

from qcompiler import recipe_file
from qcompiler.gate import floors
from qcompiler.passes import PASSES
from qcompiler.state import Fact
from qcompiler.targets import TARGETS
from tests.docs.markdown import LINK, without_links

GENERATED = {"docs/arm-instructions.md", "docs/below-8-bits-figures.md", "docs/benchmarks.md"}
"""Written by commands after the rest; a link to one may lead to a file that is not there yet."""


def documents(root):
    found = [*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("*/README.md")]
    return sorted(set(found))


def test_links_lead_to_files(root):
    broken = []
    for path in documents(root):
        for target in LINK.findall(path.read_text(encoding="utf-8")):
            place = (path.parent / target).resolve()
            if "://" not in target and not place.exists() and str(place.relative_to(root)) not in GENERATED:
                broken.append(f"{path.relative_to(root)}: {target}")
    assert broken == []


def test_readme_links_every_guide_and_the_changelog_is_there(root):
    readme = (root / "README.md").read_text(encoding="utf-8")
    for name in ("cli", "devices", "recipe", "report-schema", "targets", "writing-a-pass", "writing-a-target"):
        assert f"docs/{name}.md" in readme
    assert (root / "CHANGELOG.md").read_text(encoding="utf-8").startswith("# Changelog")
    assert "Apache License" in (root / "LICENSE").read_text(encoding="utf-8")


def test_lines_are_short(root):
    long = [
        f"{path.name}:{number}"
        for path in documents(root)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if len(without_links(line)) > 120 and not line.startswith(("|", "$"))
    ]
    assert long == []


@pytest.mark.parametrize("name", [*PASSES, *TARGETS])
def test_every_pass_and_target_is_named_in_the_readme(name, root):
    assert f"`{name}`" in (root / "README.md").read_text(encoding="utf-8")


def test_every_fact_is_explained(root):
    text = (root / "docs" / "writing-a-pass.md").read_text(encoding="utf-8")
    for fact in Fact:
        assert f"| `{fact.name}` |" in text


def property_names(schema):
    """Yield the name of every property that a JSON schema describes, at any depth."""
    if isinstance(schema, dict):
        properties = schema.get("properties")
        yield from properties if isinstance(properties, dict) else ()
    for inner in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from property_names(inner)


def test_every_property_of_a_report_is_explained(root):
    schema = json.loads((root / "qcompiler" / "report" / "report.schema.json").read_text(encoding="utf-8"))
    text = (root / "docs" / "report-schema.md").read_text(encoding="utf-8")
    names = sorted(set(property_names(schema)))
    assert len(names) > 80
    assert [name for name in names if f"`{name}`" not in text] == []


def test_every_key_of_a_recipe_is_explained(root):
    text = (root / "docs" / "recipe.md").read_text(encoding="utf-8")
    tables = (recipe_file._KEYS, recipe_file._FLOOR_KEYS, recipe_file._IMAGE_KEYS, recipe_file._MATCH_KEYS)
    names = [name for table in tables for name in table]
    assert [name for name in names if f"`{name}" not in text] == []


def test_decisions_are_numbered_and_have_four_parts(root):
    paths = sorted((root / "docs" / "decisions").glob("*.md"))
    assert [path.name[:4] for path in paths] == [f"{n:04d}" for n in range(1, len(paths) + 1)]
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert text.startswith(f"# {path.name[:4]} ")
        assert re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE) == [
            "Context",
            "Options",
            "Decision",
            "Consequence",
        ]
        assert len(text.splitlines()) < 60, "one page each"


def test_the_default_floors_are_those_of_the_gate(root):
    text = (root / "docs" / "decisions" / "0006-default-floors.md").read_text(encoding="utf-8")
    for row in (
        f"| loss of top-1 | at most {floors.MAX_DROP_POINTS:g} point, or {floors.MAX_DROP_SAMPLES} samples",
        f"| agreement | at least {100 * floors.MIN_AGREEMENT:g} % of the answers |",
        f"| SQNR | at least {floors.MIN_SQNR_DB:g} dB | outputs that are no class scores",
        f"| SQNR | at least {floors.MIN_SYNTHETIC_SQNR_DB:g} dB | synthetic inputs |",
        f"| latency ratio | at most {floors.MAX_LATENCY_RATIO:g} |",
    ):
        assert row in text
