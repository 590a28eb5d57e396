"""The benchmark of sparsity: what it asks of the command, and when a goal is reached."""

from __future__ import annotations

import pytest

from benchmarks.sparsity import MAGNITUDE, MEASURED, SURGEON, UNIFORM, Setting, parse_arguments, verdict


def test_every_kind_asks_for_its_own():
    plain = Setting(0.7, MEASURED).words(100, classes=True)
    assert plain[plain.index("--sparsity") + 1] == "0.7"
    assert "--passes" not in plain
    for kind, method in ((SURGEON, "surgeon"), (MAGNITUDE, "magnitude")):
        words = Setting(0.7, kind).words(100, classes=False)
        assert words[words.index("--sparsity") + 1] == "0.7:uniform"
        assert f"prune{{methods={method}}}" in words[words.index("--passes") + 1].split(",")
        assert "--min-agreement" not in words
    assert Setting(0.5, UNIFORM, 2.0).words(100, classes=True)[-2:] == ["--fine-tune", "2"]


@pytest.mark.parametrize(("loss", "said"), [("+8.00", "goal 8: reached"), ("+8.01", "goal 8: missed"), ("-", "")])
def test_goals_are_for_measured_shares(loss, said):
    assert verdict("cifar10_resnet20", Setting(0.7, MEASURED), loss) == said
    assert verdict("cifar10_resnet20", Setting(0.7, UNIFORM), loss) == ""
    assert verdict("digits_cnn", Setting(0.7, MEASURED), loss) == ""


def test_unknown_names_end_the_program(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--kinds", "luck"])
    assert "unknown kinds: luck" in capsys.readouterr().err
