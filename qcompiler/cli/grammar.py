"""How the command line reads: a default command, options in sections, examples, and a list of exit codes."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from qcompiler.errors import EXIT_CODES

WIDTH = 100


class SectionOption(click.Option):
    """An option that ``--help`` lists under a heading."""

    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:  # noqa: ANN401 - click's own
        super().__init__(*args, **kwargs)
        self.section = section


def write_options(ctx: click.Context, formatter: click.HelpFormatter, parameters: Sequence[click.Parameter]) -> None:
    """Write one definition list per heading; options without one come last."""
    sections: dict[str, list[tuple[str, str]]] = {}
    plain: list[tuple[str, str]] = []
    for parameter in parameters:
        record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
        if record is not None:
            heading = getattr(parameter, "section", None)
            (sections.setdefault(heading, []) if heading else plain).append(record)
    for heading, records in [*sections.items(), ("Other" if sections else "Options", plain)]:
        with formatter.section(heading):
            formatter.write_dl(records)


class SectionCommand(click.Command):
    """A command whose help lists its options under their headings, and shows examples as they are typed."""

    def __init__(self, *args: Any, examples: tuple[str, ...] = (), **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one definition list per heading, in the order in which headings first appear."""
        write_options(ctx, formatter, self.get_params(ctx))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{example}\n")


class DefaultGroup(click.Group):
    """A group whose first word is a command or, if it is none, the first word of the default command.

    A file that is named like a command is given with its folder: ``./inspect``.
    """

    default = "compile"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert the default command where no command is named."""
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h", "--version"):
            self._refuse_typo(args[0])
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the command names in the order they were added."""
        return list(self.commands)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help of the default command, then the other commands and the exit codes."""
        default = self.commands[self.default]
        context = click.Context(default, info_name=ctx.info_name, help_option_names=ctx.help_option_names)
        default.format_usage(context, formatter)
        default.format_help_text(context, formatter)
        write_options(context, formatter, [*default.params, *self.get_params(ctx)])
        with formatter.section("Commands"):
            rows = [(name, command.get_short_help_str(80)) for name, command in self.commands.items()]
            formatter.write_dl([row for row in rows if row[0] != self.default])
        default.format_epilog(context, formatter)
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in EXIT_CODES.items()])

    def _refuse_typo(self, word: str) -> None:
        if word.startswith("-") or "." in word or Path(word).exists():
            return
        close = difflib.get_close_matches(word, self.commands, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"commands are {', '.join(self.commands)}"
        raise click.UsageError(f"{word!r} is neither a command nor a file; {hint}")
