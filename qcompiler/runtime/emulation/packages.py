"""Fetching and unpacking packages from the indexes that apt and pip are set up with; nothing is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from qcompiler.errors import RuntimeUnavailable

ARM_PACKAGES = (
    "libc6",
    "libgcc-s1",
    "libstdc++6",
    "zlib1g",
    "libexpat1",
    "libffi8",
    "libssl3",
    "libbz2-1.0",
    "liblzma5",
    "libuuid1",
    "libsqlite3-0",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "python3.11-minimal",
)
"""Python for the board, and the libraries that its modules and ONNX Runtime load."""

QEMU_PACKAGES = (
    "qemu-user",
    "libblkid1",
    "libcapstone4",
    "libffi8",
    "libglib2.0-0",
    "libgmp10",
    "libgnutls30",
    "libhogweed6",
    "libidn2-0",
    "libmount1",
    "libnettle8",
    "libnuma1",
    "libp11-kit0",
    "libpcre2-8-0",
    "libselinux1",
    "libtasn1-6",
    "libunistring2",
    "liburing2",
)
"""qemu for this machine, and the libraries that it loads beyond those of every Debian system."""

PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_17_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")
PYTHON = "3.11"
_TIMEOUT_S = 900.0


class Apt:
    """apt with the system's sources and keys, but with lists, cache and state of its own; needs no root."""

    def __init__(self, folder: Path) -> None:
        """Fetch the lists of packages.

        Args:
            folder: for apt's state.

        Raises:
            RuntimeUnavailable: apt is missing, or its indexes cannot be reached.
        """
        self._folder = folder
        for name in ("state/lists/partial", "cache/archives/partial", "debs"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        settings = {
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64,arm64",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Dir::State": folder / "state",
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder / "cache",
        }
        self._options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
        run_tool(["apt-get", *self._options, "--quiet", "update"])

    def unpack(self, names: Sequence[str], architecture: str, root: Path) -> None:
        """Download packages and unpack them into a folder.

        Args:
            names: of packages, without those that they depend on.
            architecture: "amd64" or "arm64".
            root: the folder that stands for ``/``.

        Raises:
            RuntimeUnavailable: a package is not there or cannot be unpacked.
        """
        debs = self._folder / "debs" / architecture
        debs.mkdir(exist_ok=True)
        wanted = [f"{name}:{architecture}" for name in names]
        run_tool(["apt-get", *self._options, "--quiet", "download", *wanted], folder=debs)
        for deb in sorted(debs.glob("*.deb")):
            run_tool(["dpkg-deb", "--extract", str(deb), str(root)])


def unpack_wheels(versions: Mapping[str, str], folder: Path, site: Path) -> None:
    """Download wheels for 64-bit ARM and unpack them.

    Args:
        versions: project -> version.
        folder: for the wheels.
        site: where to unpack them.

    Raises:
        RuntimeUnavailable: pip is missing, or finds no such wheel.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation=cp", f"--python-version={PYTHON}", "--dest", str(folder)]
    command += [f"--platform={name}" for name in PLATFORMS]
    run_tool([*command, *(f"{name}=={version}" for name, version in versions.items())])
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)


def run_tool(command: Sequence[str], *, folder: Path | None = None) -> str:
    """Run a program and return what it wrote to stdout.

    Raises:
        RuntimeUnavailable: it is not there, fails or does not end; the message holds its last words.
    """
    name = "pip" if command[1:3] == ["-m", "pip"] else Path(command[0]).name
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except OSError as error:
        raise RuntimeUnavailable(f"{name} cannot be started ({error.strerror}); emulation needs it") from error
    except subprocess.TimeoutExpired as error:
        raise RuntimeUnavailable(f"{name} did not end within {_TIMEOUT_S:.0f} s; check its package index") from error
    if done.returncode:
        words = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = (words or [f"exit code {done.returncode}"])[-1]
        raise RuntimeUnavailable(f"{name} failed while the ARM emulation was set up: {reason[:300]}")
    return done.stdout
