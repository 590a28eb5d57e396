"""Reading and writing parts of Markdown files."""

import re

FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


def fences(text, language):
    """Return the content of all code blocks of a language, in order."""
    return [found[2] for found in FENCE.finditer(text) if found[1] == language]


def commands(text, program):
    """Return all lines of console blocks that call a program."""
    lines = [line for block in fences(text, "console") for line in block.splitlines()]
    return [line[2:] for line in lines if line.startswith(f"$ {program}")]


def section(text, name):
    """Return what stands between ``<!-- name -->`` and ``<!-- /name -->``."""
    return text.split(f"<!-- {name} -->\n")[1].split(f"<!-- /{name} -->")[0]


def with_section(text, name, content):
    """Return a text with new content between its markers."""
    before, _, rest = text.partition(f"<!-- {name} -->\n")
    return f"{before}<!-- {name} -->\n{content}<!-- /{name} -->{rest.split(f'<!-- /{name} -->', 1)[1]}"


def table(headings, rows):
    """Return a Markdown table."""
    lines = ["| " + " | ".join(cells) + " |\n" for cells in (headings, *rows)]
    return "".join([lines[0], "|---" * len(headings) + "|\n", *lines[1:]])


def without_links(text):
    return LINK.sub("", text)
