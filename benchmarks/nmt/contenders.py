"""What compresses the translation model: settings of ``qcompile``, the paper's bits, and onnxruntime's quantizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from benchmarks.compiler import run_with_words
from benchmarks.nmt.corpus import encode, padded, read_part
from benchmarks.nmt.decoding import first_feeds, open_sessions, shifted
from benchmarks.nmt.export import DECODER, ENCODER
from benchmarks.process import ToolRun
from benchmarks.readers import save_arrays
from benchmarks.rivals import DYNAMIC, run_rival

FLOAT, RIVAL, PAPER = "float", "onnxruntime dynamic", "paper"
CALIBRATION_ROWS = 128
NO_FLOORS = ("--min-sqnr=-1000", "--max-latency-ratio", "1000")
"""Floors that stop nothing, so that no repair adds bits."""

PAPER_BITS = {
    r"^encoder\.\d+\.self_attention": 3,
    r"^encoder\.\d+\.feed_forward": 4,
    r"^decoder\.\d+\.self_attention": 2,
    r"^decoder\.\d+\.cross_attention": 3,
    r"^decoder\.\d+\.feed_forward": 1,
    r"^(table|projection|embedding)": 3,
}
"""Sublayer -> bits, of layers by name.

Source: Chung et al., "Extremely Low Bit Transformer Quantization for On-Device Neural Machine Translation" (Findings
of EMNLP 2020), for attention and feed-forward sublayers. Differs: all rows of the table have 3 bits instead of 1 to 4
by their frequency, and nothing is trained again.
"""


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to compress both files.

    Attributes:
        name: what the command line and the tables call it.
        words: options of ``qcompile``, but for model, data and seed; None where it is not ``qcompile``.
        layer_bits: patterns of layers by name, and their bits.
    """

    name: str
    words: tuple[str, ...] | None
    layer_bits: Mapping[str, int] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """Return a name for folders."""
        return self.name.replace(" ", "_").replace(":", "-")


def _bits(name: str) -> Contender:
    return Contender(name, ("--target", "x86", "-O1", "--bits", name, *NO_FLOORS))


def recipe_for(bits: Mapping[str, int], part: str) -> str:
    """Return a recipe with the bits that concern one file.

    Args:
        bits: pattern -> bits.
        part: "encoder" or "decoder".
    """
    other = "decoder" if part == "encoder" else "encoder"
    own = {pattern: width for pattern, width in bits.items() if other not in pattern}
    return "\n".join(f"[match.'{pattern}']\nbits = {width}\n" for pattern, width in own.items())


CONTENDERS = (
    Contender(FLOAT, None),
    Contender(RIVAL, None),
    _bits("W8A8"),
    _bits("W4A8"),
    _bits("W3A8"),
    _bits("W2A8"),
    Contender(PAPER, ("--target", "x86", "-O1", "--bits", "W4A8", *NO_FLOORS), PAPER_BITS),
)


@dataclass(frozen=True, slots=True)
class Originals:
    """The float files and what they are calibrated on.

    Attributes:
        encoder, decoder: the files.
        encoder_data, decoder_data: .npz of their inputs on training lines.
    """

    encoder: Path
    decoder: Path
    encoder_data: Path
    decoder_data: Path


def prepare(folder: Path, tokenizer: Tokenizer, data: Path) -> Originals:
    """Write the calibration samples of the float files beside them.

    Lines are spread over the training part. The decoder is calibrated on all tokens of a reference at once, which
    its caches, empty at first, do not change.
    """
    found = Originals(folder / ENCODER, folder / DECODER, folder / "encoder.npz", folder / "decoder.npz")
    if found.decoder_data.is_file():
        return found
    lines = read_part(data, "train")
    rows = np.linspace(0, len(lines.source) - 1, CALIBRATION_ROWS).astype(int)
    source = padded(encode(tokenizer, [lines.source[row] for row in rows]))
    target = padded(encode(tokenizer, [lines.target[row] for row in rows]))
    feeds = first_feeds(open_sessions(found.encoder, found.decoder), source)
    save_arrays(found.encoder_data, {"source": source})
    save_arrays(found.decoder_data, {**feeds, "tokens": shifted(target)})
    return found


def compress(contender: Contender, originals: Originals, seed: int, folder: Path) -> tuple[ToolRun, ToolRun]:
    """Run a contender on the encoder and on the decoder, into a folder of its own.

    Args:
        contender: not FLOAT.
        originals: the float files.
        seed: of ``qcompile``.
        folder: where to write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    runs = []
    pairs = ((originals.encoder, originals.encoder_data), (originals.decoder, originals.decoder_data))
    for model, samples in pairs:
        output = folder / model.stem
        if contender.words is None:
            output.mkdir(exist_ok=True)
            runs.append(run_rival(DYNAMIC, model, samples, output))
            continue
        words = [*contender.words, "--seed", str(seed), *_recipe_words(contender, model.stem, folder)]
        runs.append(run_with_words(contender.name, model, samples, words, output))
    return runs[0], runs[1]


def _recipe_words(contender: Contender, part: str, folder: Path) -> Sequence[str]:
    if not contender.layer_bits:
        return ()
    path = folder / f"{part}.toml"
    path.write_text(recipe_for(contender.layer_bits, part), encoding="utf-8")
    return ("--config", str(path))
