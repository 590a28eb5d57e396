"""The report of the translation benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.nmt.decisions import Decisions, decision_section
from benchmarks.nmt.scoring import Translation, paired_interval, signature
from benchmarks.tables import environment, markdown_table, wrapped

_ABOUT = """
A Transformer of 3 + 3 layers (width 256, 6.0 M parameters, one table of 8000 subwords for both languages and the
output) translates Multi30k from English to German. It was trained on the 29 000 training lines; contenders read some
of them, and choose by nothing else. "Smaller" counts encoder, decoder and the file of the constants that both hold,
graphs and scales included. BLEU is of text that is tokenised and in lower case; intervals are 95 % of paired bootstrap
over sentences, against the float model. Cross-entropy is of a token of the reference, given the tokens before it.
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """A contender with one seed.

    Attributes:
        name: of the contender.
        seed: of the compilation.
        size: bytes of both files.
        compile_seconds: wall seconds of both compilations.
        parts: part -> its translation; empty where there are no files.
        notes: what was refused or failed.
        decisions: of ``qcompile``.
    """

    name: str
    seed: int
    size: int
    compile_seconds: float
    parts: Mapping[str, Translation]
    notes: tuple[str, ...] = ()
    decisions: Decisions | None = None

    def line(self) -> str:
        """Return the figures on one line, for progress."""
        figures = [f"{part} BLEU {t.bleu:.2f}, {t.entropy:.4f} nats" for part, t in self.parts.items()]
        return "; ".join([f"{self.size} bytes", *figures, *self.notes])


def report(entries: Sequence[Entry], cost: Mapping[str, float], beam: int) -> str:
    """Return the whole report; the first entry is the float model."""
    names = ",".join(dict.fromkeys(entry.name for entry in entries[1:]))
    seeds = ",".join(map(str, sorted({entry.seed for entry in entries})))
    asked = f'--contenders "{names}" --seeds {seeds} --parts {",".join(entries[0].parts)} --beam {beam}'
    search = "greedy search" if beam == 1 else f"beam search of {beam}"
    cost_text = (
        f"Training took {cost['cpu_minutes']:.1f} minutes of CPU time ({cost['wall_minutes']:.1f} by the clock), "
        f"{cost['epochs']:.0f} epochs. Decoded by {search}, 50 sentences at a time, one thread. sacrebleu: "
        f"{signature()}."
    )
    sections: list[str] = [
        "# Translation\n",
        environment(f"python -m benchmarks.nmt --data ROOT {asked}"),
        *(wrapped(" ".join(text.split())) + "\n" for text in (_ABOUT, cost_text)),
        *(part_section(part, entries) for part in entries[0].parts),
    ]
    decided = [(e.name, e.decisions) for e in entries if e.decisions is not None]
    sections += [decision_section(decided)] if decided else []
    notes = [_item(f"{e.name}, seed {e.seed}: {text}") for e in entries for text in e.notes]
    return "\n".join([*sections, *(["## Notes\n", *notes, ""] if notes else [])])


def _item(text: str) -> str:
    """Return an item of a list, in lines of at most 110 characters."""
    return "- " + wrapped(text).replace("\n", "\n  ")


def part_section(part: str, entries: Sequence[Entry]) -> str:
    """Return the table of one part."""
    base = entries[0]
    reference = base.parts[part]
    rows = []
    for entry in entries:
        found = entry.parts.get(part)
        if found is None:
            continue
        low, high = paired_interval(found.statistics, reference.statistics)
        rows.append(
            (
                entry.name,
                str(entry.seed),
                f"{entry.size / 1e6:.3f}",
                f"{base.size / entry.size:.2f}x",
                f"{found.bleu:.2f}",
                f"{found.bleu - reference.bleu:+.2f} ({low:+.2f} to {high:+.2f})",
                f"{found.entropy:.4f}",
                f"{found.cpu_seconds:.1f} ({found.cpu_seconds / reference.cpu_seconds:.2f}x)",
                f"{found.load_seconds:.2f}",
                f"{found.peak_bytes / 1e6:.0f}",
            )
        )
    header = (
        *("contender", "seed", "MB", "smaller", "BLEU", "against float"),
        *("nats a token", "decoding, CPU s", "load, s", "peak, MB"),
    )
    return f"## {part}\n\n{markdown_table(header, rows)}"
