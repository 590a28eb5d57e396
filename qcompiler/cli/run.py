"""The entry point: runs a command and turns every way it can end into one line and an exit code."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import click
from click.exceptions import Exit

from qcompiler.cli.commands import qcompile
from qcompiler.errors import QCompileError
from qcompiler.interrupts import terminate_as_interrupt

USAGE = 2
FILE_SYSTEM = 7
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``qcompile`` and return its exit code; ``errors.EXIT_CODES`` lists them.

    Args:
        arguments: the words after the program's name; None takes them from the command line.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        # Not click's own main(): it would print a stray line on Ctrl-C and end a closed pipe in 1.
        with terminate_as_interrupt(), qcompile.make_context("qcompile", given or ["--help"]) as context:
            code = qcompile.invoke(context)
        sys.stdout.flush()
    except Exit as error:
        code = error.exit_code
    except click.ClickException as error:
        return _fail(error.format_message(), USAGE)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output left early, as `head` does; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FILE_SYSTEM
    except QCompileError as error:
        if error.exit_code == QCompileError.exit_code:
            return _fail_with_traceback(error)
        return _fail(str(error), error.exit_code)
    except Exception as error:  # the last line of defense: users get one line, we get the traceback
        return _fail_with_traceback(error)
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int) -> int:
    print(f"error: {_one_line(message)}", file=sys.stderr)
    return code


def _fail_with_traceback(error: Exception) -> int:
    text = "".join(traceback.format_exception(error))
    name = f"qcompile-error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (Path.cwd(), Path(tempfile.gettempdir())):
        try:
            (folder / name).write_text(text, encoding="utf-8")
        except OSError:
            continue
        place = f"the traceback is in {folder / name}; please report it"
        break
    else:
        place = "the traceback could not be written anywhere"
    return _fail(f"a bug of ours: {type(error).__name__}: {error} ({place})", QCompileError.exit_code)


def _one_line(text: str) -> str:
    joined = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in joined)
