"""A sample of operators, and every awkward file, through the real command line with its real child processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import models
from tests.conftest import SHARED_DATA
from tests.robustness.conftest import Command
from tests.robustness.node_models import node_cases, readable

SAMPLE = 40
SHARDS = 4


@pytest.mark.parametrize("shard", range(SHARDS))
def test_sample_of_operators(shard: int, command: Command, tmp_path: Path) -> None:
    cases = list(node_cases().items())
    chosen = cases[:: len(cases) // SAMPLE][shard::SHARDS]
    verified = 0
    for name, case in chosen:
        path = models.save(readable(case.model), tmp_path, f"{name}.onnx")
        ended = command(path, "--allow-unchanged", "--force")
        if ended.code == 0:
            verified += 1
            assert json.loads((ended.folder / "out" / "report.json").read_text())["verdict"]["loaded"]
        else:
            ended.refused(3)
    assert verified >= len(chosen) // 2


def _awkward() -> list[str]:
    folder = SHARED_DATA / "awkward"
    return sorted(str(p.relative_to(folder)) for p in folder.glob("**/*.onnx")) or ["absent"]


@pytest.mark.parametrize("name", _awkward())
def test_awkward_files(shared_data: Path, command: Command, name: str) -> None:
    path = shared_data / "awkward" / name
    ended = command(path)
    try:
        models.session(path)
    except Exception:
        ended.refused(3, str(path), "does not load it")
        return
    if ended.code == 5:
        ended.refused(5, "nothing to compress", "--allow-unchanged")
        ended = command(path, "--allow-unchanged")
    if ended.code == 0:
        assert (ended.folder / "out" / "model.onnx").is_file()
    else:
        line = ended.refused(3)
        assert any(reason in line for reason in ("not a tensor", "do not exchange", "--data")), line
