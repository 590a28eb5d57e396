"""Which boards there are, which of them a target is checked on, and what they say about themselves."""

import pytest

from qcompiler.errors import UsageError
from qcompiler.runtime.emulation.board import BOARDS, boards_for, find_board, write_board
from qcompiler.targets.arm import PROFILES


def test_every_profile_of_the_arm_target_is_a_board():
    assert set(BOARDS) == set(PROFILES)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("arm:cortex-a53", ["cortex-a53", "cortex-a76", "i8mm"]),
        ("arm:cortex-a72", ["cortex-a72", "cortex-a76", "i8mm"]),
        ("arm:cortex-a76", ["cortex-a76", "cortex-a72", "i8mm"]),
        ("arm:i8mm", ["i8mm", "cortex-a72", "cortex-a76"]),
        ("x86", []),
        ("other:cortex-a76", []),
    ],
)
def test_a_target_is_checked_on_its_own_board_and_every_other_kind(target, expected):
    assert [board.name for board in boards_for(target)] == expected


def test_an_unknown_board_is_refused_with_those_there_are():
    with pytest.raises(UsageError, match=r"no emulated board 'cortex-m4'; there are cortex-a53, cortex-a72"):
        find_board("cortex-m4")


def test_a_board_describes_itself(tmp_path):
    write_board(BOARDS["cortex-a76"], tmp_path)
    info = (tmp_path / "proc/cpuinfo").read_text()
    assert "CPU part\t: 0xd0b\n" in info
    assert "asimddp" in info
    assert "i8mm" not in info
    cpu = tmp_path / "sys/devices/system/cpu"
    assert (cpu / "possible").read_text() == "0\n"
    assert (cpu / "cpu0/cache/index2/size").read_text() == "512K\n"


def test_only_newer_boards_have_dot_products():
    assert [name for name, board in BOARDS.items() if "asimddp" in board.features.split()] == ["cortex-a76", "i8mm"]
