"""The progress line."""

import sys

from qcompiler.cli import progress


def test_quiet_where_stderr_is_no_terminal(capfd, monkeypatch):
    monkeypatch.setattr(progress, "DELAY_S", 0.0)
    with progress.show_progress() as tell:
        tell("calibrate", 1, 10)
    assert capfd.readouterr().err == ""


def test_names_what_takes_long(capfd, monkeypatch):
    monkeypatch.setattr(progress, "DELAY_S", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with progress.show_progress() as tell:
        tell("observe", 10, 10)
        tell("calibrate [conv1]", 3, 10)
        tell("verify", 0, 0)
        tell("calibrate [conv1]", 4, 10)
        progress.threading.Event().wait(0.3)
    assert "calibrate [conv1]" in capfd.readouterr().err


def test_what_cannot_say_how_long_it_is_shows_no_figure_of_its_own(capfd, monkeypatch):
    monkeypatch.setattr(progress, "DELAY_S", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with progress.show_progress() as tell:
        tell("place", 0, 0)
        progress.threading.Event().wait(0.3)
    shown = capfd.readouterr().err
    assert "place" in shown
    assert "100" not in shown
