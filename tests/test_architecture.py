"""The house rules that a machine can check: layers, packages, sizes, names, what is imported when."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import qcompiler
from qcompiler.passes import PASSES
from qcompiler.targets import TARGETS

ROOT = Path(__file__).resolve().parent.parent
TIERS: tuple[frozenset[str], ...] = tuple(
    frozenset(names.split())
    for names in (
        "errors",
        "budget codec counts quant",
        "row_codes sparsity",
        "interrupts plan records recipe row_search",
        "recipe_file state",
        "protocols",
        "data model",
        "runtime",
        "activation_grids blockwise gate",
        "artifacts graphsurgeon layer_problems layers lookups lowering report samples unpacking",
        "attention_problems executor mixed_precision",
        "pruning search training",
        "decoding passes targets",
        "pipeline registry",
        "inspection repair shared_plan task_scales trials",
        "placement",
        "flow",
        "compiler",
        "cli",
        "__main__",
    )
)
"""Who may import whom: a module or package imports only itself and what stands in a line above its own."""

LIBRARIES = {
    "click": {"cli"},
    "jinja2": {"report"},
    "jsonschema": {"report"},
    "networkx": {"model", "placement"},
    "numba": {"codec"},
    "onnx_graphsurgeon": {"graphsurgeon"},
    "onnxruntime": {"model", "runtime"},
    "onnxscript": {"model"},
    "rich": {"cli", "report"},
    "torch": {"executor", "search", "training"},
}
"""Who may import a library; others may be imported anywhere above ``quant``."""

MAX_LINES = 400
MAX_CODE_LINES = 40
MAX_PARAMETERS = 6


def sources() -> list[Path]:
    """Return every file of the package, each once: under its real folder, not under the link to it."""
    files = [p for p in (ROOT / "qcompiler").rglob("*.py") if not is_linked(p)]
    return sorted([*files, *(ROOT / "passes").glob("*.py"), *(ROOT / "targets").glob("*.py")])


def is_linked(path: Path) -> bool:
    return (ROOT / "qcompiler" / path.relative_to(ROOT / "qcompiler").parts[0]).is_symlink()


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "qcompiler" else ("qcompiler", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def unit_of(module: str) -> str:
    """Return the module or package below ``qcompiler`` that a dotted name lies in; "" for the root."""
    return module.split(".")[1] if "." in module else ""


def imported(tree: ast.Module) -> Iterator[str]:
    """Yield the dotted name of every import, also of lazy ones, but not of those for type checkers only."""
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide layers"
            whole = node.module == "qcompiler"
            yield from (f"qcompiler.{a.name}" if whole else str(node.module) for a in node.names)


def wrong_imports(path: Path, source: str) -> list[str]:
    """Return the imports of a file that its layer does not allow."""
    own = unit_of(module_of(path))
    if own == "":
        return []
    tier = {name: number for number, names in enumerate(TIERS) for name in names}
    wrong = []
    for name in imported(ast.parse(source)):
        unit, library = unit_of(name), name.split(".")[0]
        if library == "qcompiler" and unit != own and tier.get(unit, len(TIERS)) >= tier[own]:
            wrong.append(f"{module_of(path)} imports {name}")
        elif own in ("passes", "targets") and unit == own:
            wrong.append(f"{module_of(path)} imports {name}; what several share lies in a lower layer")
        elif own not in LIBRARIES.get(library, {own}):
            wrong.append(f"{module_of(path)} imports {library}")
        elif own == "quant" and library in ("onnx", "onnx_ir"):
            wrong.append(f"{module_of(path)} imports {library}; the mathematics knows no file format")
    return wrong


def test_layers():
    assert [line for path in sources() for line in wrong_imports(path, path.read_text())] == []


def test_every_module_has_a_layer():
    units = {unit_of(module_of(path)) for path in sources()} - {""}
    assert units == frozenset().union(*TIERS)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("qcompiler/plan.py", "from qcompiler.gate.verify import verify"),
        ("qcompiler/plan.py", "def f():\n    import qcompiler.gate.verify"),
        ("passes/place.py", "from qcompiler.targets.arm import Arm"),
        ("passes/place.py", "from qcompiler.passes.observe import Observe"),
        ("targets/arm.py", "from qcompiler import pipeline"),
        ("qcompiler/gate/verify.py", "import torch"),
        ("qcompiler/quant/grid.py", "import onnx"),
        ("qcompiler/data/npy.py", "from qcompiler.model import load"),
    ],
)
def test_a_wrong_import_is_found(file, line):
    assert len(wrong_imports(ROOT / file, line)) == 1


# -- packages ----------------------------------------------------------------------------------------


def setuptools_table() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_listed_packages_are_the_folders():
    folders = {module_of(path) for path in sources() if path.name == "__init__.py"}
    listed = setuptools_table()["packages"]
    assert sorted(listed) == sorted(folders)


@pytest.mark.parametrize("name", ["passes", "targets"])
def test_the_folder_is_linked_and_mapped(name):
    link = ROOT / "qcompiler" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name
    assert setuptools_table()["package-dir"][f"qcompiler.{name}"] == name
    assert not [p for p in (ROOT / name).iterdir() if p.is_dir() and p.name != "__pycache__"], "must stay flat"


# -- sizes, names, docstrings ------------------------------------------------------------------------

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def code_lines(function: Function) -> int:
    """Return the lines of a function without its docstring."""
    total = (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        total -= (function.body[0].end_lineno or 0) - function.body[0].lineno + 1
    return total


def parameters(function: Function) -> int:
    given = function.args
    names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def public(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Yield the public classes and functions of a module, and the public methods of those classes."""
    for node in body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{prefix}{node.name}.")


def test_files_are_short():
    lengths = {module_of(path): len(path.read_text().splitlines()) for path in sources()}
    assert {name: count for name, count in lengths.items() if count > MAX_LINES} == {}


def test_functions_are_short():
    found = {
        f"{module_of(path)}.{function.name}": code_lines(function)
        for path in sources()
        for function in functions(ast.parse(path.read_text()))
    }
    assert {name: count for name, count in found.items() if count > MAX_CODE_LINES} == {}


def test_functions_take_few_parameters():
    found = {
        f"{module_of(path)}.{function.name}": parameters(function)
        for path in sources()
        for function in functions(ast.parse(path.read_text()))
    }
    assert {name: count for name, count in found.items() if count > MAX_PARAMETERS} == {}


def test_everything_public_is_documented():
    missing = [module_of(path) for path in sources() if not ast.get_docstring(ast.parse(path.read_text()))]
    missing += [
        f"{module_of(path)}.{name}"
        for path in sources()
        for name, node in public(ast.parse(path.read_text()).body)
        if not ast.get_docstring(node)
    ]
    assert missing == []


def test_sources_are_ascii():
    assert [str(path) for path in sources() if not path.read_text().isascii()] == []


def test_names_of_passes_and_targets_follow_the_file():
    for name, place in {**PASSES, **TARGETS}.items():
        module, _, attribute = place.partition(":")
        stem = name.replace("-", "_")
        assert module.rpartition(".")[2] == stem
        assert attribute == "".join(word.capitalize() for word in stem.split("_"))
    for folder, table in (("passes", PASSES), ("targets", TARGETS)):
        files = {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__"}
        assert files == {name.replace("-", "_") for name in table}


# -- what is public, and what is imported when ---------------------------------------------------------


def test_public_names():
    assert sorted(qcompiler.__all__) == [
        "CompileResult",
        "CompressionPlan",
        "GraphSurgeonPass",
        "Pass",
        "Recipe",
        "Target",
        "compile_model",
        "load_report",
    ]
    for name in qcompiler.__all__:
        assert getattr(qcompiler, name).__doc__


def modules_after(*statements: str) -> set[str]:
    """Return the names of the modules that a fresh interpreter holds after some statements."""
    code = "; ".join((*statements, "import sys; print('\\n'.join(sys.modules), file=sys.stderr)"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return set(done.stderr.split("\n"))


def test_help_imports_nothing_heavy():
    names = modules_after("from qcompiler.cli import main", "main(['--help'])")
    assert names.isdisjoint({"onnx", "onnx_ir", "onnxruntime", "onnxscript", "numpy", "jinja2", "networkx"})


def test_nothing_but_training_and_its_executor_imports_torch():
    modules = [module_of(path) for path in sources() if path.name != "__main__.py"]
    statements = [f"import {name}" for name in modules if unit_of(name) not in LIBRARIES["torch"]]
    names = modules_after(*statements)
    assert names.isdisjoint({"torch", "passes", "targets"})
