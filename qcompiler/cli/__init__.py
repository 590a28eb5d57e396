"""The command line: arguments in, calls into the package, reports out; no logic, no heavy imports."""

from qcompiler.cli.run import main

__all__ = ["main"]
