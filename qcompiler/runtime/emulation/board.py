"""The boards that can be emulated, and what a program that asks about its processor finds on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qcompiler.errors import UsageError

_ARMV8_0 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_ARMV8_2 = f"{_ARMV8_0} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp ssbs"
_CACHES = ((1, "64K"), (1, "64K"), (2, "512K"))
_CPUS = "sys/devices/system/cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """One emulated board with a single core.

    Attributes:
        name: the profile of the ``arm`` target that it stands for.
        cpu: what qemu calls its processor.
        part: the part number that ARM gave the processor.
        features: what ``/proc/cpuinfo`` lists.
        kernels: which 8-bit multiply instructions ONNX Runtime uses there.
    """

    name: str
    cpu: str
    part: int
    features: str
    kernels: str


BOARDS: dict[str, Board] = {
    board.name: board
    for board in (
        Board(name="cortex-a53", cpu="cortex-a53", part=0xD03, features=_ARMV8_0, kernels="widening"),
        Board(name="cortex-a72", cpu="cortex-a72", part=0xD08, features=_ARMV8_0, kernels="widening"),
        Board(name="cortex-a76", cpu="cortex-a76", part=0xD0B, features=_ARMV8_2, kernels="dot"),
        Board(name="i8mm", cpu="max,sve=off", part=0xD40, features=f"{_ARMV8_2} i8mm bf16", kernels="matrix"),
    )
}
"""Name -> board."""


def find_board(name: str) -> Board:
    """Return the board with this name.

    Raises:
        UsageError: there is none.
    """
    if name not in BOARDS:
        raise UsageError(f"there is no emulated board '{name}'; there are {', '.join(BOARDS)}")
    return BOARDS[name]


def boards_for(target: str) -> tuple[Board, ...]:
    """Return the boards that a target is checked on: its own, then one for each other kind of kernel.

    Args:
        target: full name, such as ``arm:cortex-a53``. A target that is no emulated board has none.
    """
    name, _, profile = target.partition(":")
    if name != "arm" or profile not in BOARDS:
        return ()
    own = BOARDS[profile]
    others = (BOARDS[n] for n in ("cortex-a72", "cortex-a76", "i8mm"))
    return (own, *(board for board in others if board.kernels != own.kernels))


def write_board(board: Board, folder: Path) -> None:
    """Write what the board says about itself.

    qemu looks up absolute paths below its prefix first. Without these files a program under emulation reads the
    processor of the machine it really runs on, and ONNX Runtime does not survive that.

    Args:
        board: which one.
        folder: qemu's prefix; becomes the root folder of the emulated program.
    """
    lines = {
        "processor": "0",
        "BogoMIPS": "100.00",
        "Features": board.features,
        "CPU implementer": "0x41",
        "CPU architecture": "8",
        "CPU variant": "0x1",
        "CPU part": f"{board.part:#x}",
        "CPU revision": "0",
    }
    files = {
        "proc/cpuinfo": "".join(f"{key}\t: {value}\n" for key, value in lines.items()),
        f"{_CPUS}/kernel_max": "0\n",
        f"{_CPUS}/possible": "0\n",
        f"{_CPUS}/present": "0\n",
        f"{_CPUS}/online": "0\n",
        f"{_CPUS}/cpu0/cpufreq/cpuinfo_max_freq": "1000000\n",
        f"{_CPUS}/cpu0/cpufreq/cpuinfo_min_freq": "1000000\n",
        f"{_CPUS}/cpu0/topology/physical_package_id": "0\n",
    }
    for group in ("cluster_cpus_list", "core_siblings_list", "package_cpus_list"):
        files[f"{_CPUS}/cpu0/topology/{group}"] = "0\n"
    for index, (level, size) in enumerate(_CACHES):
        place = f"{_CPUS}/cpu0/cache/index{index}"
        files |= {f"{place}/level": f"{level}\n", f"{place}/size": f"{size}\n", f"{place}/shared_cpu_list": "0\n"}
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
