"""The code in the guides is a package that installs and works as the guides say."""

import json
import tomllib

import pytest

from tests.docs.markdown import commands, fences


def install(text, module, site):
    """Lay out the first Python block of a guide and its entry points as an installed distribution."""
    project = tomllib.loads(fences(text, "toml")[0])["project"]
    site.mkdir()
    (site / f"{module}.py").write_text(fences(text, "python")[0], encoding="utf-8")
    info = site / f"{module}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n", encoding="utf-8"
    )
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("guide", "module", "added"),
    [
        ("writing-a-pass.md", "widen_ranges", "widen-ranges"),
        ("writing-a-target.md", "doorbell", "doorbell"),
    ],
)
def test_the_guide_works(guide, module, added, root, folder, tmp_path, qcompile):
    text = (root / "docs" / guide).read_text(encoding="utf-8")
    install(text, module, tmp_path / "site")
    lines = commands(text, "qcompile")
    assert len(lines) >= 2
    for line in lines:
        extra = " --force" if "digits_cnn.onnx" in line else ""
        done = qcompile(line + extra, cwd=folder, paths=[tmp_path / "site"])
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        if line in ("qcompile passes", "qcompile targets"):
            assert added in done.stdout
    report = json.loads((folder / "digits_cnn.qcompile" / "report.json").read_text())
    assert added in [entry["name"] for entry in report["passes"]] or report["target"] == f"{added}:night"


def test_the_graphsurgeon_function_removes_identities(root):
    gs = pytest.importorskip("onnx_graphsurgeon")
    from onnx import helper

    from tests import models

    code = fences((root / "docs" / "writing-a-pass.md").read_text(encoding="utf-8"), "python")[1]
    namespace = {}
    exec(compile(code, "writing-a-pass.md", "exec"), namespace)
    nodes = [helper.make_node("Identity", ["x"], ["i"]), helper.make_node("Relu", ["i"], ["y"])]
    info = ("float", models.FLOAT, [2])
    model = models.build(nodes, [("x", *info[1:])], [("y", *info[1:])])
    graph = gs.import_onnx(model)
    namespace["drop_identities"](graph)
    assert [node.op for node in graph.nodes] == ["Relu"]
    assert namespace["make_pass"]().name == "drop-identities"
