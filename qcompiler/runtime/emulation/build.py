"""The emulator: an aarch64 Python with ONNX Runtime, qemu, and the plugin that counts. Made once, then cached."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy
import onnxruntime

from qcompiler.errors import RuntimeUnavailable
from qcompiler.runtime.emulation.board import BOARDS, Board, write_board
from qcompiler.runtime.emulation.cache import cache_folder, cached
from qcompiler.runtime.emulation.packages import (
    ARM_PACKAGES,
    PYTHON,
    QEMU_PACKAGES,
    Apt,
    run_tool,
    unpack_wheels,
)

SUITE = "bookworm"
MACHINE = "x86_64"
LAYOUT = 1
"""Part of the cache's key; raised when the tree is built in another way."""

GET_QEMU = "install it with 'apt-get install qemu-user' (version 7.2, for its plugins), or leave --verify emulate out"
_SOURCE = Path(__file__).with_name("counter.c")
_LIBRARIES = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")
_PROBE = "import numpy, onnxruntime; print(onnxruntime.__version__, numpy.__version__)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulator:
    """An emulator that is ready to run.

    Attributes:
        tree: folder of the aarch64 files.
        qemu: the program ``qemu-aarch64``.
        libraries: folders of libraries that qemu needs beside the system's; "" for none.
        counter: the compiled plugin.
        versions: of qemu, the emulated Python, ONNX Runtime and NumPy.
    """

    tree: Path
    qemu: Path
    libraries: str
    counter: Path
    versions: tuple[tuple[str, str], ...]

    def command(self, board: Board, arguments: list[str], counts: Path | None = None) -> list[str]:
        """Return the command line that runs the emulated Python.

        Args:
            board: which board.
            arguments: of Python.
            counts: where to write the counts; None counts nothing, which is faster.
        """
        plugin = ["-plugin", f"{self.counter},out={counts}"] if counts else []
        return [*_command(self.tree, self.qemu, board, plugin), *arguments]

    def environment(self) -> dict[str, str]:
        """Return the environment for ``command``: the user's, without what is meant for another Python."""
        return _environment(self.libraries)


def prepare_emulator(started: Callable[[str], None] = lambda what: None) -> Emulator:
    """Return the emulator, built first where it is not in the cache.

    Args:
        started: called with what takes long, before it is done.

    Raises:
        RuntimeUnavailable: this system is not the one that it is made for, or a package or program is missing.
        OutputError: the cache cannot be written.
    """
    _check_system()
    wheels = {"onnxruntime": onnxruntime.__version__, "numpy": numpy.__version__}
    key = "-".join(f"{name}{number}" for name, number in wheels.items())
    home = cache_folder() / "emulation"
    own_qemu = _installed_qemu()

    def build(folder: Path) -> None:
        started("setting up the ARM emulation (once)")
        _build_tree(folder, wheels, own_qemu)

    name = f"{key}-{SUITE}-aarch64-{'system' if own_qemu else 'own'}-qemu-{LAYOUT}"
    tree = cached(home / name, build)
    qemu = own_qemu or tree / "qemu" / "usr" / "bin" / "qemu-aarch64"
    libraries = "" if own_qemu else _libraries(tree)
    versions = {"qemu": _qemu_version(qemu, libraries), "python": PYTHON, **wheels}
    return Emulator(
        tree=tree, qemu=qemu, libraries=libraries, counter=_compiled(home), versions=tuple(versions.items())
    )


def _check_system() -> None:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    name = release.get("PRETTY_NAME", platform.system())
    if release.get("VERSION_CODENAME") != SUITE or release.get("ID") != "debian" or platform.machine() != MACHINE:
        raise RuntimeUnavailable(
            f"ARM emulation is made for Debian {SUITE} on {MACHINE}, and this is {name} on {platform.machine()}; "
            "leave --verify emulate out, or run in a container of that system"
        )


def _installed_qemu() -> Path | None:
    """Return the system's ``qemu-aarch64`` if it takes plugins of this kind; static and newer builds do not."""
    found = shutil.which("qemu-aarch64")
    if found is None:
        return None
    try:
        usable = "-plugin" in _output([found, "-h"], "") and "version 7." in _output([found, "--version"], "")
    except RuntimeUnavailable:
        return None
    return Path(found) if usable else None


def _qemu_version(qemu: Path, libraries: str) -> str:
    words = _output([str(qemu), "--version"], libraries).split()
    if "version" not in words[:-1]:
        raise RuntimeUnavailable(f"{qemu} does not start: {' '.join(words)[:300] or 'no message'}; {GET_QEMU}")
    return words[words.index("version") + 1]


def _output(command: list[str], libraries: str) -> str:
    try:
        done = subprocess.run(
            command,
            env=_environment(libraries),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise RuntimeUnavailable(f"{command[0]} cannot be started ({error.strerror}); {GET_QEMU}") from error
    return done.stdout + done.stderr


def _build_tree(folder: Path, wheels: dict[str, str], own_qemu: Path | None) -> None:
    """Fill a folder: ``root`` and ``site`` of the boards, ``boards``, and ``qemu`` where the system has none."""
    scratch = folder / "scratch"
    scratch.mkdir()
    apt = Apt(scratch)
    apt.unpack(ARM_PACKAGES, "arm64", folder / "root")
    if own_qemu is None:
        try:
            apt.unpack(QEMU_PACKAGES, "amd64", folder / "qemu")
        except RuntimeUnavailable as error:
            raise RuntimeUnavailable(f"qemu is missing and cannot be fetched: {error}; {GET_QEMU}") from error
    unpack_wheels(wheels, scratch, folder / "site")
    shutil.rmtree(scratch)
    for board in BOARDS.values():
        place = folder / "boards" / board.name
        write_board(board, place)
        for part in (folder / "root").iterdir():
            (place / part.name).symlink_to(Path("..") / ".." / "root" / part.name)
    _probe(folder, own_qemu)


def _probe(folder: Path, own_qemu: Path | None) -> None:
    """Import ONNX Runtime on a board once: proof that the tree works, and it leaves the compiled bytecode."""
    qemu, libraries = own_qemu or folder / "qemu/usr/bin/qemu-aarch64", "" if own_qemu else _libraries(folder)
    command = [*_command(folder, qemu, BOARDS["cortex-a72"], []), "-c", _PROBE]
    environment = {k: v for k, v in _environment(libraries).items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RuntimeUnavailable(f"the emulated ONNX Runtime does not start: {reason[:300]}; {GET_QEMU}")


def _command(tree: Path, qemu: Path, board: Board, plugin: list[str]) -> list[str]:
    root, site = tree / "root", tree / "site"
    for_guest = [word for name in ("LD_LIBRARY_PATH", "LD_PRELOAD") for word in ("-U", name)]
    # One thread only, or what it runs cannot be told from the rest: telemetry would start one of its own.
    alone = ("OPENBLAS_NUM_THREADS=1", "ORT_DISABLE_TELEMETRY=1")
    for pair in (f"PYTHONHOME={root / 'usr'}", f"PYTHONPATH={site}", *alone):
        for_guest += ["-E", pair]
    python = root / "usr" / "bin" / f"python{PYTHON}"
    return [str(qemu), "-cpu", board.cpu, "-L", str(tree / "boards" / board.name), *for_guest, *plugin, str(python)]


def _environment(libraries: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "QEMU_", "LD_"))}
    kept |= {"LC_ALL": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**kept, "LD_LIBRARY_PATH": libraries} if libraries else kept


def _libraries(tree: Path) -> str:
    return ":".join(str(tree / "qemu" / place) for place in _LIBRARIES)


def _compiled(home: Path) -> Path:
    """Return the plugin, compiled first where this source has not been before."""
    source = _SOURCE.read_bytes()

    def build(folder: Path) -> None:
        compiler = os.environ.get("CC", "gcc")
        target = str(folder / "counter.so")
        run_tool([compiler, "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-o", target, str(_SOURCE)])

    return cached(home / f"counter-{hashlib.sha256(source).hexdigest()[:16]}", build) / "counter.so"
