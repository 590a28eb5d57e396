"""Reading what the plugin wrote: whole runs, nodes, and everything that does not fit."""

import json
import sys
from pathlib import Path

import pytest

from qcompiler.counts import InstructionCounts
from qcompiler.errors import QCompileError
from qcompiler.runtime.emulation import run
from qcompiler.runtime.emulation.board import BOARDS

NODES = (("conv", "QLinearConv"), ("flat", "Reshape"), ("fc", "QGemm"))
COST = {"conv": (5000, 400), "flat": (10, 0), "fc": (700, 60)}
"""Node -> instructions and dot products among them."""
PROFILER, BETWEEN, AROUND = 300, 90, 20


class Machine:
    """Writes what the plugin would."""

    def __init__(self):
        self.total = self.dot = 0
        self.lines = []

    def spend(self, total, dot=0):
        self.total += total
        self.dot += dot

    def say(self, kind):
        self.lines.append(f"{kind} {self.total} {self.dot} 0 0 0")

    def plain_run(self):
        self.spend(AROUND)
        for name, _ in NODES:
            self.spend(*COST[name])
        self.say("m")

    def profiled_run(self):
        for _ in range(run.CLOCKS_BEFORE):
            self.say("c")
        self.spend(AROUND)
        for name, _ in NODES:
            self.say("c")
            self.spend(*COST[name])
            self.spend(PROFILER)
            self.say("c")
            self.spend(BETWEEN)
        for _ in range(run.CLOCKS_AFTER):
            self.say("c")
        self.say("m")

    def model(self):
        self.spend(100_000)
        self.say("c")
        self.say("m")
        self.plain_run()
        self.plain_run()
        self.spend(50_000)
        self.say("c")
        self.say("m")
        self.profiled_run()


def write_profile(folder, name, nodes=NODES):
    events = [{"cat": "Session", "name": "model_run"}]
    for _ in range(2):
        events += [{"cat": "Node", "name": f"{n}_kernel_time", "args": {"op_name": op}} for n, op in nodes]
    path = folder / f"{name}.json"
    path.write_text(json.dumps(events))
    return path


@pytest.fixture
def counted(tmp_path):
    machine = Machine()
    machine.model()
    machine.model()
    profiles = {kind: write_profile(tmp_path, kind) for kind in ("original", "result")}
    return run.read_counts("\n".join(machine.lines), profiles)


def test_runs_are_counted_without_what_lies_around_them(counted):
    whole = InstructionCounts(dot=460, other=AROUND + 5710 - 460)
    assert counted["original"].runs == (whole, whole)
    assert counted["result"] == counted["original"]


def test_nodes_are_counted_without_the_profiler(counted):
    model = counted["result"]
    assert model.operators == NODES
    assert model.nodes_unavailable == ""
    assert [node.dot for node in model.nodes] == [400, 0, 60]
    for node, (name, _) in zip(model.nodes, NODES, strict=True):
        assert abs(node.total - COST[name][0]) < BETWEEN
    assert abs(sum(node.total for node in model.nodes) - model.runs[-1].total) <= BETWEEN + AROUND


def test_a_model_may_be_counted_without_its_nodes(tmp_path):
    machine = Machine()
    machine.spend(100_000)
    machine.say("m")
    machine.plain_run()
    machine.plain_run()
    machine.model()
    found = run.read_counts("\n".join(machine.lines), {"split": None, "result": write_profile(tmp_path, "result")})
    assert found["split"] == run.CountedModel(runs=found["result"].runs)
    assert found["result"].operators == NODES


def test_elements_are_those_of_the_first_output(tmp_path):
    machine = Machine()
    machine.model()
    path = write_profile(tmp_path, "result")
    events = json.loads(path.read_text())
    for event in events:
        if event["name"] == "conv_kernel_time":
            event["args"]["output_type_shape"] = [{"uint8": [1, 4, 5]}, {"uint8": [7]}]
    path.write_text(json.dumps(events))
    assert run.read_counts("\n".join(machine.lines), {"result": path})["result"].elements == (20, 0, 0)


def test_nodes_that_do_not_fit_the_readings_are_not_told(tmp_path):
    machine = Machine()
    machine.model()
    found = run.read_counts("\n".join(machine.lines), {"result": write_profile(tmp_path, "result", NODES[:2])})
    assert found["result"].nodes == ()
    assert found["result"].nodes_unavailable == "14 readings of the clock do not fit 2 nodes"
    assert found["result"].runs


def test_multiplies_outside_of_nodes_mean_that_the_nodes_are_others():
    machine = Machine()
    machine.say("m")
    machine.profiled_run()
    readings = [InstructionCounts(dot=int(w[2]), other=int(w[1]) - int(w[2])) for w in map(str.split, machine.lines)]
    whole = InstructionCounts(other=5000)
    assert run.by_node(readings, 3, whole)[1] == ""
    shifted = [readings[0], *readings[2:-1], readings[-2], readings[-1]]
    assert run.by_node(shifted, 3, whole) == ((), "vector multiplies were counted outside of the nodes")


def test_other_marks_are_our_bug(tmp_path):
    with pytest.raises(QCompileError, match="1 marks were counted for 1 models, not 5"):
        run.read_counts("m 1 0 0 0 0\nc 2 0 0 0 0\n", {"result": write_profile(tmp_path, "result")})


class FakeEmulator:
    """Runs a script of this machine's Python in place of the emulated one."""

    def __init__(self, script):
        self.script = script

    def command(self, board, arguments, counts=None):
        return [sys.executable, "-c", self.script, *arguments[2:], str(counts)]

    def environment(self):
        return {}


def emulate(script, folder):
    job = run.EmulatedJob(models={"original": Path("a.onnx"), "result": Path("b.onnx")}, counts={}, samples=folder)
    return run.run_emulated(FakeEmulator(script), BOARDS["cortex-a72"], job)


@pytest.mark.parametrize(
    ("script", "failure", "culprit"),
    [
        ("import os; os.kill(os.getpid(), 11)", "the emulation ended with signal 11: no message", ""),
        ("import sys; sys.exit('qemu: broken')", "the emulation ended with exit code 1: qemu: broken", ""),
        (
            'print(\'noise\'); print(\'{"stage": "failed", "reason": "no kernel", "culprit": "result"}\'); 1 / 0',
            "no kernel",
            "result",
        ),
    ],
)
def test_a_board_that_fails_is_a_finding(script, failure, culprit, tmp_path):
    found = emulate(script, tmp_path)
    assert (found.failure, found.culprit, found.models) == (failure, culprit, {})


def test_a_board_that_does_not_end_is_a_finding(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "TIMEOUT_S", 0.3)
    assert emulate("import time; time.sleep(60)", tmp_path).failure == "the emulation did not end within 0 s"


def test_the_board_is_told_what_to_run_and_its_counts_are_read(tmp_path):
    machine = Machine()
    machine.model()
    machine.model()
    (tmp_path / "lines").write_text("\n".join(machine.lines))
    profile = write_profile(tmp_path, "profile")
    script = f"""
import json, shutil, sys
job = json.load(open(sys.argv[1]))
shutil.copy({str(tmp_path / "lines")!r}, sys.argv[2])
for kind, path in job["models"].items():
    assert path.startswith("/") and job["threads"] == 1 and job["board"] == "cortex-a72"
    print(json.dumps({{"stage": "ran", "kind": kind, "profile": {str(profile)!r}}}))
"""
    found = emulate(script, tmp_path)
    assert found.failure == ""
    assert list(found.models) == ["original", "result"]
    assert found.models["result"].nodes[0].dot == 400
