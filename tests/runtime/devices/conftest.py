"""A board behind a real sshd of this machine, with keys that are thrown away."""

import getpass
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from tests.models import FLOAT, build, save
from tests.runtime.devices.board import Board, free_port, listens, wait_for

SSHD = shutil.which("sshd", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))

SERVER = """
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
SetEnv TMPDIR={folder}/remote
"""

CLIENT = """
Host board wrong-key other-host
  HostName 127.0.0.1
  Port {port}
  User {user}
Host wrong-key
  IdentityFile {folder}/stranger
Host other-host
  HostKeyAlias another
Host !wrong-key *
  IdentityFile {folder}/user
Host *
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile {folder}/known
  GlobalKnownHostsFile none
  StrictHostKeyChecking yes
"""


@pytest.fixture(scope="session")
def running_board(tmp_path_factory):
    """Start the board and stop it in the end."""
    if SSHD is None or shutil.which("ssh") is None or shutil.which("ps") is None:
        pytest.skip("no sshd, ssh or ps on this machine; on Debian: apt-get install openssh-server procps")
    folder, port = tmp_path_factory.mktemp("board"), free_port()
    for name in ("host", "user", "stranger"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    for name in ("bin", "remote", "client"):
        (folder / name).mkdir()
    kind, key, _ = (folder / "host.pub").read_text().split()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    facts = {"folder": folder, "port": port, "user": getpass.getuser()}
    (folder / "server").write_text(SERVER.format(**facts))
    (folder / "config").write_text(CLIENT.format(**facts))
    ssh = folder / "client" / "ssh"
    ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/config "$@"\n')
    ssh.chmod(0o755)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd does not start as root without it
    command = [SSHD, "-D", "-f", str(folder / "server"), "-E", str(folder / "log")]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as server:
        try:
            wait_for(lambda: listens(port) or server.poll() is not None, "sshd")
            if server.poll() is not None:
                pytest.skip(f"sshd does not start here: {(folder / 'log').read_text().strip()}")
            board = Board(folder, port, server.pid)
            board.python("python3", f'exec {sys.executable} "$@"')
            yield board
        finally:
            server.terminate()


@pytest.fixture
def board(running_board, monkeypatch):
    """Give the board, with an ssh that has a configuration of its own, as a user's has."""
    monkeypatch.setenv("PATH", f"{running_board.folder}/client{os.pathsep}{os.environ['PATH']}")
    yield running_board
    wait_for(lambda: running_board.left_over == [], "the board's temporary folder to be empty")


@pytest.fixture
def model(tmp_path):
    """Give a model of two nodes, the second without a name: y = relu(x @ w)."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], name="product"), helper.make_node("Relu", ["h"], ["y"])]
    weight = {"w": np.ones((4, 3), np.float32)}
    return save(build(nodes, [("x", FLOAT, ["N", 4])], [("y", FLOAT, ["N", 3])], weight), tmp_path)


@pytest.fixture
def broken_model(tmp_path):
    """Give a model that is read, and that no runtime loads."""
    nodes = [helper.make_node("Invented", ["x"], ["y"], name="it", domain="com.nobody")]
    proto = build(nodes, [("x", FLOAT, [1, 4])], [("y", FLOAT, [1, 4])])
    proto.opset_import.add(domain="com.nobody", version=1)
    return save(proto, tmp_path, "broken.onnx")
