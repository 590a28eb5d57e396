"""Setting the emulator up: on which systems, from which tools, and one clear line where it cannot be."""

import os
import sys
import zipfile
from pathlib import Path

import pytest

from qcompiler.errors import RuntimeUnavailable
from qcompiler.runtime.emulation import build, packages
from qcompiler.runtime.emulation.board import BOARDS
from qcompiler.runtime.emulation.packages import Apt, run_tool, unpack_wheels

BOOKWORM = {"ID": "debian", "VERSION_CODENAME": "bookworm", "PRETTY_NAME": "Debian GNU/Linux 12 (bookworm)"}


def make_tool(folder, name, script):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Give a folder of programs that come before those of the system."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.fixture
def here(monkeypatch, tmp_path):
    """Make this the system that emulation is made for, with a cache of its own and no qemu."""
    monkeypatch.setattr(build.platform, "freedesktop_os_release", lambda: BOOKWORM)
    monkeypatch.setattr(build.platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "_installed_qemu", lambda: None)
    return tmp_path / "cache" / "qcompiler" / "emulation"


@pytest.mark.parametrize(
    ("release", "machine"),
    [
        ({**BOOKWORM, "VERSION_CODENAME": "trixie", "PRETTY_NAME": "Debian GNU/Linux 13 (trixie)"}, "x86_64"),
        ({"ID": "ubuntu", "VERSION_CODENAME": "noble", "PRETTY_NAME": "Ubuntu 24.04"}, "x86_64"),
        (BOOKWORM, "aarch64"),
        ({}, "x86_64"),
    ],
)
def test_another_system_is_refused_in_one_line(release, machine, monkeypatch):
    monkeypatch.setattr(build.platform, "freedesktop_os_release", lambda: release)
    monkeypatch.setattr(build.platform, "machine", lambda: machine)
    with pytest.raises(RuntimeUnavailable, match="made for Debian bookworm on x86_64, and this is") as caught:
        build.prepare_emulator()
    assert caught.value.exit_code == 6
    assert "\n" not in str(caught.value)
    assert release.get("PRETTY_NAME", "Linux") in str(caught.value)


def test_a_system_without_a_name_is_refused(monkeypatch):
    def missing():
        raise OSError("no os-release")

    monkeypatch.setattr(build.platform, "freedesktop_os_release", missing)
    with pytest.raises(RuntimeUnavailable, match="made for Debian bookworm"):
        build.prepare_emulator()


def test_qemu_that_cannot_be_fetched_is_one_line_that_says_how_to_get_it(here, tools):
    make_tool(tools, "apt-get", 'case "$*" in *qemu-user*) echo "E: Unable to locate package" >&2; exit 100;; esac')
    with pytest.raises(RuntimeUnavailable, match="apt-get install qemu-user") as caught:
        build.prepare_emulator()
    assert "Unable to locate package" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [p.name for p in here.iterdir() if not p.name.endswith(".lock")] == []


def test_an_index_that_cannot_be_reached_is_one_line(here, tools):
    make_tool(tools, "apt-get", 'echo "W: something" >&2; echo "E: Could not resolve deb.example" >&2; exit 100')
    with pytest.raises(RuntimeUnavailable, match=r"apt-get failed .*: E: Could not resolve deb\.example"):
        build.prepare_emulator()


def test_a_tree_is_built_once_and_holds_every_board(here, tools, monkeypatch):
    said = []
    make_tool(tools, "apt-get", 'case "$*" in *download*) touch one.deb;; esac')
    make_tool(tools, "dpkg-deb", 'mkdir -p "$3/usr/bin" "$3/lib"; touch "$3/usr/bin/python3.11"')
    monkeypatch.setattr(build, "unpack_wheels", lambda versions, folder, site: site.mkdir())
    monkeypatch.setattr(build, "_probe", lambda folder, own_qemu: None)
    monkeypatch.setattr(build, "_output", lambda command, libraries: "qemu-aarch64 version 7.2.22 (Debian)")
    made = [build.prepare_emulator(said.append) for _ in range(2)]
    assert made[0] == made[1]
    assert said == ["setting up the ARM emulation (once)"]
    assert made[0].tree.parent == here
    assert dict(made[0].versions)["qemu"] == "7.2.22"
    assert made[0].counter.is_file()
    for name in BOARDS:
        assert (made[0].tree / "boards" / name / "usr" / "bin" / "python3.11").is_file()
        assert (made[0].tree / "boards" / name / "proc" / "cpuinfo").is_file()
    assert not (made[0].tree / "scratch").exists()


def test_a_qemu_that_does_not_start_is_one_line(monkeypatch):
    monkeypatch.setattr(build, "_output", lambda command, libraries: "error while loading\nlibglib")
    with pytest.raises(RuntimeUnavailable, match=r"^/q does not start: error while loading libglib; install it"):
        build._qemu_version(Path("/q"), "")


def test_the_command_names_the_board_and_hides_this_python(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/host")
    monkeypatch.setenv("LD_PRELOAD", "/host.so")
    monkeypatch.setenv("QEMU_CPU", "other")
    emulator = build.Emulator(tree=Path("/t"), qemu=Path("/q"), libraries="/t/lib", counter=Path("/c.so"), versions=())
    command = emulator.command(BOARDS["i8mm"], ["x.py"], Path("/counts"))
    assert command[:5] == ["/q", "-cpu", "max,sve=off", "-L", "/t/boards/i8mm"]
    assert command[-4:] == ["-plugin", "/c.so,out=/counts", "/t/root/usr/bin/python3.11", "x.py"]
    assert "-plugin" not in emulator.command(BOARDS["i8mm"], ["x.py"])
    environment = emulator.environment()
    assert environment["LD_LIBRARY_PATH"] == "/t/lib"
    assert {"PYTHONPATH", "LD_PRELOAD", "QEMU_CPU"}.isdisjoint(environment)


@pytest.mark.parametrize(
    ("script", "usable"),
    [
        ('case $1 in -h) echo "-plugin";; *) echo "qemu-aarch64 version 7.2.22";; esac', True),
        ('case $1 in -h) echo "-strace";; *) echo "qemu-aarch64 version 7.2.22";; esac', False),
        ('case $1 in -h) echo "-plugin";; *) echo "qemu-aarch64 version 10.0.2";; esac', False),
    ],
)
def test_only_a_qemu_that_takes_this_plugin_is_used(script, usable, tools):
    path = make_tool(tools, "qemu-aarch64", script)
    assert build._installed_qemu() == (path if usable else None)


def test_apt_keeps_to_its_own_folder(tools, tmp_path):
    make_tool(tools, "apt-get", f'echo "$PWD $@" >> {tmp_path}/calls; case "$*" in *download*) touch a.deb;; esac')
    make_tool(tools, "dpkg-deb", f'echo "dpkg-deb $@" >> {tmp_path}/calls')
    Apt(tmp_path / "apt").unpack(("libc6", "zlib1g"), "arm64", tmp_path / "root")
    update, download, extract = (tmp_path / "calls").read_text().splitlines()
    for call in (update, download):
        assert f"Dir::State={tmp_path}/apt/state" in call
        assert f"Dir::Cache={tmp_path}/apt/cache" in call
    assert download.startswith(f"{tmp_path}/apt/debs/arm64 ")
    assert download.endswith("download libc6:arm64 zlib1g:arm64")
    assert extract == f"dpkg-deb --extract {tmp_path}/apt/debs/arm64/a.deb {tmp_path}/root"


def test_wheels_are_those_of_the_board(tmp_path, monkeypatch):
    fake = make_tool(tmp_path / "bin", "python", f'echo "$@" > {tmp_path}/call')
    monkeypatch.setattr(packages.sys, "executable", str(fake))
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "numpy-1-cp311-cp311-manylinux_aarch64.whl", "w") as archive:
        archive.writestr("numpy/__init__.py", "")
    unpack_wheels({"numpy": "1"}, wheels, site)
    call = (tmp_path / "call").read_text()
    assert call.startswith("-m pip download ")
    assert "--platform=manylinux_2_28_aarch64" in call
    assert "--python-version=3.11" in call
    assert call.rstrip().endswith("numpy==1")
    assert (site / "numpy" / "__init__.py").is_file()


def test_a_missing_tool_and_a_failing_pip_are_named(tmp_path):
    with pytest.raises(RuntimeUnavailable, match="no-such-tool cannot be started"):
        run_tool(["no-such-tool"])
    with pytest.raises(RuntimeUnavailable, match=r"pip failed while .*no-such-option"):
        run_tool([sys.executable, "-m", "pip", "--no-such-option"])
