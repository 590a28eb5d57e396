"""The options of the main command, in the sections of its help."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from qcompiler.cli.grammar import SectionOption

_F = TypeVar("_F", bound=Callable[..., Any])
_PATH = click.Path(path_type=Path)

_what = partial(click.option, cls=SectionOption, section="What to compile for, and on which data")
_floor = partial(click.option, cls=SectionOption, section="Floors: limits the result must hold")
_how = partial(click.option, cls=SectionOption, section="How it is compressed")
_output = partial(click.option, cls=SectionOption, section="Output")

_OPTIONS = (
    _what(
        "--target",
        "targets",
        multiple=True,
        metavar="NAME",
        help="Hardware, as NAME or NAME:PROFILE; may repeat (one folder each, one comparison). Default: arm. "
        "'qcompile targets' lists them.",
    ),
    _what(
        "--data",
        metavar="PATH",
        help="Samples: .npz (arrays named as the inputs, samples first), .npy, a folder of those or of "
        "images, or module:callable. Without it nothing is verified on real data.",
    ),
    _what("--labels", metavar="PATH", help="Class labels: .npy, or CSV with file,label."),
    _what(
        "--metric",
        metavar="NAME",
        help="auto (top1 with labels, else sqnr), top1, sqnr, cosine or module:function.",
    ),
    _what(
        "--calibration-samples",
        type=int,
        metavar="N",
        help="At most this many to calibrate on. Default: 128.",
    ),
    _what("--verify-samples", type=int, metavar="N", help="At most this many to verify on. Default: 128."),
    _what("--config", type=_PATH, metavar="FILE", help="A recipe, such as qcompile.toml; flags override it."),
    _floor("--min-sqnr", type=float, metavar="DB", help="Signal to quantization noise of every output, in dB."),
    _floor("--min-agreement", metavar="SHARE", help="Share of samples with the same class: 0.97 or 97%."),
    _floor(
        "--max-drop",
        type=float,
        metavar="X",
        help="Loss of the metric; points for top1. Below 8 bits: the smallest file within it.",
    ),
    _floor(
        "--max-size",
        metavar="SIZE",
        help="File size: bytes, or 500KB, 1.2MB, 1MiB. Layers get fewer bits until it holds.",
    ),
    _floor("--max-latency-ratio", type=float, metavar="R", help="Latency of the result over the original's."),
    _floor("--require-data", is_flag=True, default=None, help="Accuracy not verified on real data is a miss."),
    _how(
        "--bits",
        metavar="WxAy|auto",
        help="Bits of weights (1 to 8) and activations (4, 8 or 16). W4A8: 4 bits on average, each layer by how much "
        "it hurts; W4A8:uniform: 4 everywhere; W0.8A8: 0.8 bits, trained (docs/flexor.md); auto: the smallest file "
        "that holds the floors. Default: W8A8, and fewer only where --max-size or --max-drop asks; W8A8 rules that "
        "out.",
    ),
    _how(
        "--sparsity",
        metavar="S|auto|N:M",
        help="Share of the weights that become 0, such as 0.7: each layer by how much it hurts. 0.7:uniform: the same "
        "in every layer. auto: as many as --max-size needs, else as the floors on accuracy bear. 2:4: that pattern, "
        "where the target runs it. See docs/sparsity.md.",
    ),
    _how(
        "--sparse-format",
        metavar="NAME",
        help="How pruned weights are stored: auto (default) is the smallest of bitmask, delta and dense that a session "
        "can decode; f2f is for decoders of a fixed rate, and writes its streams as files, too. See "
        "docs/sparse-formats.md.",
    ),
    _how(
        "--embedding-bits",
        metavar="auto|N|L-H",
        help="Bits of every row of embedding tables, decoded at each lookup: N for all, L-H by how much each row "
        "matters (0 to 8), auto for 1-2. Default: 8 bits, decoded at load. See docs/embeddings.md.",
    ),
    _how("--embedding-bytes", metavar="SIZE", help="What these tables may take, all together, such as 1.9MB."),
    _how(
        "--token-counts",
        metavar="FILE",
        help="How often every token occurs: .npy, or JSON with a list. Default: counted on the calibration samples.",
    ),
    _how(
        "-O",
        "effort",
        type=int,
        metavar="0|1|2|3",
        help="0: min-max. 1: search (default). 2: also place by measured latency, and improve weights below "
        "8 bits. 3: improve them for as long as it takes. See docs/effort.md.",
    ),
    _how(
        "--max-time",
        metavar="TIME",
        help="When to end the search with the best verified result: 90s, 10min, 2h. The first result is "
        "finished in any case; Ctrl-C ends the search in the same way.",
    ),
    _how(
        "--fine-tune",
        type=float,
        metavar="MINUTES",
        help="Train weights, scales and biases on their grids for so long, by distillation from the original; "
        "samples need no labels. For weights below 5 bits; needs PyTorch.",
    ),
    _how(
        "--max-memory",
        metavar="SIZE",
        help="What the search may hold in memory, such as 4GB; what does not fit is left out, and said so.",
    ),
    _how(
        "--decode",
        is_flag=True,
        default=None,
        help="Tokens come one by one, as from a decoder: products are chosen for one row. See docs/matmuls.md.",
    ),
    _how(
        "--passes",
        metavar="LIST",
        help="Run these passes instead of the target's: 'a,b{option=value}' (quote the braces). "
        "'qcompile passes' lists them.",
    ),
    _how("--skip-pass", "skip_passes", multiple=True, metavar="NAME", help="Leave a pass out; may repeat."),
    _how(
        "--dump-after",
        multiple=True,
        metavar="NAME",
        help="Save the model as it is after a pass; may repeat.",
    ),
    _how(
        "--plan",
        "replay",
        type=click.Path(),
        metavar="DIR",
        help="Replay the decisions recorded in a result; with --fine-tune, train them further.",
    ),
    _how("--seed", type=int, metavar="N", help="Decides which samples are drawn. Default: 0."),
    _how("--threads", type=int, metavar="N", help="Threads of every measured session. Default: 1."),
    _how(
        "--verify",
        metavar="HOW",
        help="host: run the result on this machine (default). emulate: also on emulated ARM boards, with "
        "instructions counted; set up once, see docs/emulation.md.",
    ),
    _how("--dry-run", is_flag=True, help="Say what would be done, and write nothing."),
    _output("-o", "--output", type=_PATH, metavar="DIR", help="Result folder. Default: MODEL's name + .qcompile."),
    _output("--force", is_flag=True, help="Replace an existing result."),
    _output("--allow-unchanged", is_flag=True, default=None, help="Nothing to compress is no error: write a copy."),
    _output("--summary", type=_PATH, metavar="FILE", help="Also write a page in Markdown, for a pull request."),
    _output("--json", "as_json", is_flag=True, help="Print the reports as JSON, and nothing else, on stdout."),
    _output("-v", "--verbose", is_flag=True, help="Print every layer and every note."),
)


def compile_options(function: _F) -> _F:
    """Add every option of the main command to a function."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
