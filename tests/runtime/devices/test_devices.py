"""One runner for every device; what goes wrong there is one line here. No test looks at a time."""

import ast
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import onnx
import pytest
from onnx.external_data_helper import convert_model_to_external_data

from qcompiler.errors import LatencyUnavailable, ModelError, RuntimeUnavailable, UsageError
from qcompiler.inspection.profiling import ProfileOptions, profile_model
from qcompiler.runtime.devices import SCHEMES, open_device
from qcompiler.runtime.devices.adb import AdbDevice
from qcompiler.runtime.devices.bundle import BOOTSTRAP, RUNNER
from qcompiler.runtime.devices.local import LocalDevice
from qcompiler.runtime.devices.ssh import SshDevice
from tests.runtime.devices.board import free_port, wait_for

SECONDS = 0.05


def profile(device, model, other=None, **options):
    return profile_model(model, other, ProfileOptions(**{"device": device, "seconds": SECONDS, **options}))


# -- names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("local", LocalDevice()),
        ("ssh://Pi", SshDevice("ssh://Pi", "Pi")),
        ("ssh://me@board:2222", SshDevice("ssh://me@board:2222", "board", "me", 2222)),
        ("ssh://[::1]:22/", SshDevice("ssh://[::1]:22/", "::1", "", 22)),
        ("ssh://b?python=/v/bin/python", SshDevice("ssh://b?python=/v/bin/python", "b", python="/v/bin/python")),
        ("adb", AdbDevice("adb")),
        ("adb:emulator-5554", AdbDevice("adb:emulator-5554", "emulator-5554")),
        ("adb?python=/p", AdbDevice("adb?python=/p", python="/p")),
    ],
)
def test_names_are_read(text, device):
    assert open_device(text) == device


@pytest.mark.parametrize(
    "text",
    [
        "",
        "board",
        "local:1",
        "ssh://",
        "ssh:board",
        "ssh://-oProxyCommand=x",
        "ssh://me:secret@board",
        "ssh://board/folder",
        "ssh://board?shell=x",
        "adb:",
        "adb:-x",
        "adbx",
    ],
)
def test_wrong_names_are_refused(text):
    with pytest.raises(UsageError, match="device"):
        open_device(text)


def test_every_scheme_names_a_device():
    for scheme in SCHEMES.values():
        example = scheme.form.replace("[USER@]BOARD[:PORT]", "b").replace("[:SERIAL]", "")
        assert open_device(example).name == example


def test_commands_take_no_option_from_a_name():
    command = open_device("ssh://me@board:2222").command
    assert command[-6:] == ["-l", "me", "-p", "2222", "--", "board"]
    assert "BatchMode=yes" in command
    assert open_device("adb:s1").command == ["adb", "-s", "s1"]


@pytest.mark.parametrize("path", [RUNNER, BOOTSTRAP], ids=["runner", "bootstrap"])
def test_what_is_copied_is_old_python_and_stands_alone(path):
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    names = {a.name for n in imports if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in imports if isinstance(n, ast.ImportFrom)}
    assert names - set(sys.stdlib_module_names) == ({"numpy", "onnxruntime"} if path == RUNNER else set())


# -- this machine --------------------------------------------------------------------------------------


def test_local(model):
    result = profile("local", model, threads=2)
    assert result.profile.min_ms <= result.profile.median_ms <= result.profile.p90_ms
    assert result.profile.runs >= 5
    assert result.profile.threads == 2
    assert result.profile.machine == result.device.machine
    assert result.device.peak_memory_bytes > 1e6
    assert result.device.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert not any("ONNX Runtime is" in note for note in result.device.notes)
    assert result.layers == ()


def test_local_blames_the_model_that_it_is(model, broken_model):
    with pytest.raises(ModelError, match=r"broken\.onnx does not run: .*com\.nobody"):
        profile("local", broken_model)
    with pytest.raises(ModelError, match=r"broken\.onnx does not run: "):
        profile("local", model, broken_model)


def test_layers_are_those_of_the_model_though_a_name_is_missing(model):
    result = profile("local", model, layers=True)
    assert {"product", "Relu"} >= {row.name for row in result.layers if row.op_type} > set()
    assert all(row.before_us is None for row in result.layers)


def test_layers_of_two_models_share_their_rows(model):
    result = profile("local", model, model, layers=True)
    assert all(row.before_us is not None and row.after_us is not None for row in result.layers)


# -- a board behind ssh --------------------------------------------------------------------------------


def test_ssh(board, model):
    result = profile(board.device, model)
    assert result.device.name == board.device
    assert result.profile.runs >= 5
    assert set(result.device.versions) == {"python", "numpy", "onnxruntime"}


def test_ssh_compares_in_one_process_and_copies_external_data(board, model, tmp_path):
    other = tmp_path / "other" / "model.onnx"
    other.parent.mkdir()
    proto = onnx.load(model)
    convert_model_to_external_data(proto, location="weights/all.bin", size_threshold=0)
    (other.parent / "weights").mkdir()
    onnx.save(proto, other)
    assert (other.parent / "weights" / "all.bin").is_file()
    result = profile(board.device.replace("board?", f"127.0.0.1:{board.port}?"), model, other, layers=True)
    assert result.comparison.ratio_min > 0
    assert result.comparison.original.runs == result.comparison.result.runs
    assert all(row.before_us is not None for row in result.layers)


def test_a_login_that_talks_does_not_matter(board, model):
    device = board.python("chatty", f'echo "Welcome!"; echo "qcompile:{{"; echo hint >&2; exec {sys.executable} "$@"')
    assert profile(device, model).profile.runs >= 5


def test_another_runtime_version_is_reported(board, model):
    device = board.python_with("older", "import onnxruntime\nonnxruntime.__version__ = '1.2.3'\n")
    notes = profile(device, model).device.notes
    assert any(note.startswith("ONNX Runtime is 1.2.3 there and ") for note in notes)


MISSING = "sys.modules['onnxruntime'] = None\n"
CRASH = """
import os, signal, onnxruntime
onnxruntime.InferenceSession = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("bare", MISSING, r"lacks what runs a model \(.*onnxruntime.*\); install there: pip install"),
        ("small", CRASH, r"ended the run with signal 9; is its memory too small"),
    ],
)
def test_what_a_python_there_lacks(board, model, name, code, message):
    device = board.python_with(name, code)
    with pytest.raises(RuntimeUnavailable, match=message):
        profile(device, model)


@pytest.mark.parametrize(
    ("name", "script", "message"),
    [
        ("full", f'ulimit -f 1; exec {sys.executable} "$@"', r"no room for the model: File too large in /.*free"),
        ("ancient", "echo SyntaxError: invalid syntax >&2; exit 1", r"did not start the runner .*SyntaxError.*3\.8"),
    ],
)
def test_what_a_board_lacks(board, model, name, script, message):
    device = board.python(name, script)
    with pytest.raises(RuntimeUnavailable, match=message):
        profile(device, model)


def test_a_board_without_python(board, model):
    with pytest.raises(RuntimeUnavailable, match=r"has no such Python \(.*/none.*\); install Python 3\.8"):
        profile("ssh://board?python=/none", model)


def test_a_model_that_does_not_load_there(board, broken_model):
    with pytest.raises(RuntimeUnavailable, match=r"broken\.onnx does not load on ssh://board.*: .*com\.nobody"):
        profile(board.device, broken_model)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("ssh://wrong-key", r"Permission denied .*a key must do; try 'ssh -T wrong-key true'"),
        ("ssh://other-host", r"Host key verification failed"),
        ("ssh://nobody.invalid", r"Could not resolve hostname"),
    ],
)
def test_boards_that_let_nobody_in(board, model, device, message):
    with pytest.raises(RuntimeUnavailable, match=f"{device} cannot be reached: .*{message}"):
        profile(device, model)


def test_nobody_listens(board, model):
    with pytest.raises(RuntimeUnavailable, match="Connection refused"):
        profile(f"ssh://127.0.0.1:{free_port()}", model)


def test_a_board_that_dies_while_it_measures(board, model):
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(profile, board.device, model, seconds=600.0)
        models = board.folder.glob
        wait_for(lambda: running.done() or list(models("remote/qcompile-*/0/model.onnx")), "the model on the board")
        board.die()
        with pytest.raises(LatencyUnavailable, match=r"ssh://board.* was lost while it measured \(.*closed"):
            running.result()


def test_no_ssh_program(model, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeUnavailable, match="'ssh' is not installed"):
        profile("ssh://board", model)


# -- a phone behind adb --------------------------------------------------------------------------------


@pytest.fixture
def adb(monkeypatch):
    """Give the real adb a server of its own, and stop it."""
    if shutil.which("adb") is None:
        pytest.skip("no adb on this machine; on Debian: apt-get install adb")
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(free_port()))
    yield
    subprocess.run(["adb", "kill-server"], capture_output=True, check=False, timeout=30)


@pytest.mark.parametrize(
    ("device", "message"), [("adb", "no devices"), ("adb:emulator-5998", r"device .*emulator-5998.* not found")]
)
def test_adb_without_a_device(adb, model, device, message):
    with pytest.raises(RuntimeUnavailable, match=f"{device} cannot be reached: {message}.*; 'adb devices'"):
        profile(device, model)


STAND_IN = """#!/bin/sh
[ "$1" = -s ] && shift 2
case "$1" in
  get-state) cat {folder}/state ;;
  shell) shift 2; sh -c "$*" ;;
esac
"""


@pytest.fixture
def phone(tmp_path, monkeypatch):
    """Put a program in place of adb that runs on this machine what it is told to run on a phone."""
    folder = tmp_path / "phone"
    folder.mkdir()
    (folder / "state").write_text("device\n")
    (folder / "adb").write_text(STAND_IN.format(folder=folder))
    (folder / "adb").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_adb_speaks_the_same_protocol(phone, model):
    assert profile(f"adb:one?python={sys.executable}", model).profile.runs >= 5


def test_a_phone_that_does_not_trust_us(phone, model):
    (phone / "state").write_text("unauthorized\n")
    with pytest.raises(RuntimeUnavailable, match="adb cannot be reached: unauthorized"):
        profile("adb", model)


def test_a_phone_that_is_unplugged(phone, model):
    python = phone / "python"
    python.write_text(
        f"#!/bin/sh\necho 'qcompile:{json.dumps({'started': True})}'\necho offline > {phone}/state\nexit 1\n"
    )
    python.chmod(0o755)
    with pytest.raises(LatencyUnavailable, match="cannot be reached: offline"):
        profile(f"adb?python={python}", model)
