"""What the user asks for: a frozen Recipe. ``recipe_file`` makes one from ``qcompile.toml`` and flags."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from qcompiler.codec.xor_weights import LEAST_BITS, MOST_BITS
from qcompiler.errors import UsageError
from qcompiler.sparsity import Sparsity

MAX_EFFORT = 3
METRICS = ("auto", "top1", "sqnr", "cosine")
VERIFIERS = ("host", "emulate")
WEIGHT_BITS = range(1, 9)
ACTIVATION_BITS = (4, 8, 16)
SPARSE_FORMATS = ("auto", "f2f", "bitmask", "delta", "dense")
ALLOCATIONS = ("limits", "mixed", "uniform", "auto")

OptionValue: TypeAlias = bool | int | float | str

CALLABLE = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")
"""The form of ``module:callable``."""

_BITS = re.compile(r"W([1-8])A(4|8|16)", re.IGNORECASE)
_FRACTION = re.compile(r"W(0?\.\d+|1\.0)A(4|8|16)", re.IGNORECASE)
_BITS_FORM = "write W8A8: W and 1 to 8 for weights, A and 4, 8 or 16 for activations"


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Floors:
    """Limits of the gate as asked; None means the default of ``verify``.

    Attributes:
        min_sqnr_db: of every output, in dB.
        min_agreement: share of samples (0 to 1) whose class stays the same.
        max_drop: of the metric; percentage points for top1.
        max_size_bytes: of the model with its external data.
        max_latency_ratio: latency of the result divided by the original's.
    """

    min_sqnr_db: float | None = None
    min_agreement: float | None = None
    max_drop: float | None = None
    max_size_bytes: int | None = None
    max_latency_ratio: float | None = None

    def __post_init__(self) -> None:
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise UsageError(f"min_agreement is {self.min_agreement}; it is a share from 0 to 1, or 0% to 100%")
        for name in ("max_drop", "max_size_bytes", "max_latency_ratio"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise UsageError(f"{name} is {value}; it must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePreprocessing:
    """How image files become input arrays.

    The steps, in order: decode to RGB, resize the shorter side to ``resize`` (or the whole image to the
    input size if ``resize`` is 0), crop the center to ``size``, reorder channels, map 0..255 to ``range``,
    subtract ``mean`` and divide by ``std`` (in units of ``range``), lay out.

    Attributes:
        size: (height, width) of the input; None takes the model's.
        resize: length of the shorter side before the crop, in pixels; 0 resizes to ``size`` without a crop.
        layout: "NCHW" or "NHWC".
        channels: "RGB", "BGR" or "GRAY".
        range: real values of pixel 0 and pixel 255.
        mean / std: one value, or one for each channel in the order of ``channels``.
    """

    size: tuple[int, int] | None = None
    resize: int = 0
    layout: str = "NCHW"
    channels: str = "RGB"
    range: tuple[float, float] = (0.0, 1.0)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        _one_of("image.layout", self.layout, ("NCHW", "NHWC"))
        _one_of("image.channels", self.channels, ("RGB", "BGR", "GRAY"))
        if any(s == 0 for s in self.std):
            raise UsageError("[image] std must not hold a 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchRule:
    """A rule for the nodes and tensors whose name the pattern finds; the later rule wins.

    Attributes:
        pattern: a regular expression, searched in node names and in names of their constants.
        num_bits: width of the weights, in bits, 1 to 8; None leaves the recipe's.
        scheme: "auto", "static", "dynamic" or "weight_only".
        sparsity: share of the weights that become 0 where ``--sparsity`` is given; None leaves it to the search.
        keep_float: leave the node in float.
    """

    pattern: str
    num_bits: int | None = None
    sparsity: float | None = None
    scheme: str = "auto"
    keep_float: bool = False

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise UsageError(f'[match."{self.pattern}"]: not a regular expression: {error}') from error
        _one_of(f'[match."{self.pattern}"] scheme', self.scheme, ("auto", "static", "dynamic", "weight_only"))
        if self.num_bits is not None and self.num_bits not in WEIGHT_BITS:
            raise UsageError(f'[match."{self.pattern}"]: bits = {self.num_bits}; weights have 1 to 8 bits')
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise UsageError(f'[match."{self.pattern}"]: sparsity = {self.sparsity:g}; it is a share from 0 to below 1')


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything a compilation depends on beside the model file. Defaults are the command's defaults.

    Attributes:
        targets: target names, each ``name`` or ``name:profile``.
        data / labels: paths, or ``module:callable`` for data; None means no data.
        metric: "auto", "top1", "sqnr", "cosine" or ``module:function``.
        weight_bits: width of a weight's codes, 1 to 8; what a target runs is checked against its table.
        activation_bits: width of an activation's codes: 4, 8 or 16.
        allocation: how weights below 8 bits get their widths. "mixed": ``weight_bits`` on average, each layer by
            its sensitivity; "uniform": ``weight_bits`` everywhere; "auto": as few as the floors allow; "limits":
            as "auto" if ``max_drop`` or ``max_size`` is given, else 8 bits.
        xor_bits: stored bits a weight behind an XOR network, below 1; weights with the recipe's single bit are stored
            so. None stores every bit.
        sparsity: how many weights become 0; None prunes nothing.
        sparse_format: how pruned weights are stored: "auto" is the smallest file; "f2f" (fixed-to-fixed streams),
            "bitmask", "delta" and "dense" are as asked where a session can decode them.
        embedding_bits: (fewest, most) bits of every row of embedding tables; None leaves the tables to ``place``.
        embedding_bytes: what all these tables may take in the file; None takes a default, see ``embedding-bits``.
        token_counts: a file that says how often every token occurs; None counts the calibration samples.
        effort: 0 is min-max without any search, 1 searches, 2 also places nodes by measured latency and improves
            weights below 8 bits, 3 improves them for as long as it takes; see ``qcompiler.passes.IMPROVING``.
        max_time_s: when searches end with the best that was verified, in seconds; None: when they are done.
        fine_tune_minutes: how long weights are trained behind all searches; 0 trains nothing.
        decode: tokens come one by one, so that products have one row, whatever the samples are like.
        max_memory_bytes: what this process may hold while it searches; None for no limit.
        threads: threads of every measured session.
        verify: "host" runs the result on this machine; "emulate" also on emulated boards, for targets that are one.
        calibration_samples / verify_samples: upper limits.
        passes: pass names with options, ``name{option=value}``; None takes the target's default order.
        replay: a folder whose recorded plan is lowered again instead of a search.
    """

    targets: tuple[str, ...] = ("arm",)
    data: str | None = None
    labels: str | None = None
    metric: str = "auto"
    weight_bits: int = 8
    activation_bits: int = 8
    allocation: str = "limits"
    xor_bits: float | None = None
    sparsity: Sparsity | None = None
    sparse_format: str = "auto"
    embedding_bits: tuple[int, int] | None = None
    embedding_bytes: int | None = None
    token_counts: str | None = None
    effort: int = 1
    max_time_s: float | None = None
    max_memory_bytes: int | None = None
    fine_tune_minutes: float = 0.0
    decode: bool = False
    floors: Floors = Floors()
    threads: int = 1
    verify: str = "host"
    calibration_samples: int = 128
    verify_samples: int = 128
    passes: tuple[str, ...] | None = None
    skip_passes: tuple[str, ...] = ()
    dump_after: tuple[str, ...] = ()
    seed: int = 0
    image: ImagePreprocessing = ImagePreprocessing()
    rules: tuple[MatchRule, ...] = ()
    require_data: bool = False
    allow_unchanged: bool = False
    replay: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.effort <= MAX_EFFORT:
            raise UsageError(f"there is no -O{self.effort}; effort goes from -O0 to -O{MAX_EFFORT}")
        for name, value in (("max_time", self.max_time_s), ("max_memory", self.max_memory_bytes)):
            if value is not None and not value > 0:
                raise UsageError(f"{name} is {value}; it must be more than 0")
        if not 0 <= self.fine_tune_minutes < math.inf:
            raise UsageError(f"fine_tune is {self.fine_tune_minutes}; it is a number of minutes")
        if self.fine_tune_minutes and not self.effort:
            raise UsageError("fine-tuning is a search, and -O0 rules searches out; ask for -O1 or more")
        if self.weight_bits not in WEIGHT_BITS or self.activation_bits not in ACTIVATION_BITS:
            raise UsageError(f"no such widths: W{self.weight_bits}A{self.activation_bits}; {_BITS_FORM}")
        self._check_fraction()
        for name in ("threads", "calibration_samples", "verify_samples"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")
        self._check_embeddings()
        _one_of("verify", self.verify, VERIFIERS)
        _one_of("allocation", self.allocation, ALLOCATIONS)
        _one_of("sparse_format", self.sparse_format, SPARSE_FORMATS)
        if not self.targets:
            raise UsageError("no target given; see 'qcompile targets'")
        if self.metric not in METRICS and not CALLABLE.match(self.metric):
            raise UsageError(f"metric is {self.metric!r}; it must be {', '.join(METRICS)} or module:function")
        for text in self.passes or ():
            parse_passes(text)

    def _check_fraction(self) -> None:
        if self.xor_bits is None:
            return
        if self.weight_bits != 1 or not LEAST_BITS <= self.xor_bits <= MOST_BITS:
            raise UsageError(f"no such width: W{self.xor_bits}; a fraction of a bit is {LEAST_BITS} to {MOST_BITS}")
        if self.sparsity is not None:
            raise UsageError(f"--sparsity and W{self.xor_bits}: bits behind an XOR network have no 0; leave one out")

    def _check_embeddings(self) -> None:
        if self.embedding_bits is None:
            for name in ("embedding_bytes", "token_counts"):
                if getattr(self, name) is not None:
                    raise UsageError(f"{name} says nothing without embedding_bits; give --embedding-bits auto too")
            return
        fewest, most = self.embedding_bits
        if not 0 <= fewest <= most <= max(WEIGHT_BITS) or not most:
            raise UsageError(f"embedding_bits is {fewest}-{most}; rows have 0 to 8 bits, the fewest first")

    @property
    def bits(self) -> str:
        """Return the widths as they are written, such as ``W8A8``, ``W4A8:uniform``, ``W0.8A8`` or ``auto``."""
        if self.allocation == "auto":
            return "auto"
        if self.xor_bits is not None:
            return f"W{self.xor_bits}A{self.activation_bits}"
        below = self.weight_bits < max(WEIGHT_BITS) and self.allocation == "uniform"
        return f"W{self.weight_bits}A{self.activation_bits}{':uniform' if below else ''}"

    @property
    def has_metric(self) -> bool:
        """True if there is a figure whose loss a floor can limit; whether the model has class scores shows later."""
        return self.metric == "cosine" or ":" in self.metric or (self.labels is not None and self.metric != "sqnr")

    def rule_of(self, names: Iterable[str]) -> MatchRule | None:
        """Return the last rule whose pattern is found in one of the names: those of a node and of its constants."""
        known = list(names)
        found = (rule for rule in reversed(self.rules) if any(re.search(rule.pattern, name) for name in known))
        return next(found, None)

    def to_json(self) -> dict[str, Any]:
        """Return the resolved recipe as plain JSON values."""
        document = dataclasses.asdict(self)
        document["rules"] = [dataclasses.asdict(r) for r in self.rules]
        return document


def parse_bits(text: str) -> tuple[int, int]:
    """Return (bits of weights, bits of activations) for ``W8A16`` and its like, in either case.

    Raises:
        UsageError: the text does not follow that form.
    """
    found = _BITS.fullmatch(text.strip())
    if not found:
        raise UsageError(f"{text!r} is no pair of widths; {_BITS_FORM}")
    return int(found[1]), int(found[2])


def bits_fields(text: str) -> dict[str, Any]:
    """Return the fields of a recipe that ``--bits`` sets: ``auto``, ``W4A8`` (mixed), ``W4A8:uniform`` or ``W0.8A8``.

    Raises:
        UsageError: the text does not follow that form.
    """
    wanted = text.strip()
    if wanted.lower() == "auto":
        return {"allocation": "auto"}
    widths, colon, how = wanted.partition(":")
    if colon and how.lower() not in ("mixed", "uniform"):
        raise UsageError(f"{text!r} is no way to give bits: write auto, W4A8, W4A8:uniform or W0.8A8")
    fraction = _FRACTION.fullmatch(widths.strip())
    if fraction and how.lower() in ("", "uniform"):
        found = {"weight_bits": 1, "activation_bits": int(fraction[2]), "allocation": "uniform"}
        return {**found, "xor_bits": float(fraction[1])}
    weights, activations = parse_bits(widths)
    mixed = weights < max(WEIGHT_BITS) and how.lower() != "uniform"
    allocation = "mixed" if mixed else "uniform"
    return {"weight_bits": weights, "activation_bits": activations, "allocation": allocation}


AUTO_EMBEDDING_BITS = (1, 2)
"""Two planes are the most that keep mixed rows below four times the time of a float lookup."""


def parse_embedding_bits(text: str | int) -> tuple[int, int]:
    """Return (fewest, most) bits of a row for ``auto``, ``4`` or ``0-2``.

    Raises:
        UsageError: the text does not follow that form.
    """
    wanted = str(text).strip().lower()
    if wanted == "auto":
        return AUTO_EMBEDDING_BITS
    found = re.fullmatch(r"([0-8])(?:-([0-8]))?", wanted)
    if not found:
        raise UsageError(f"{text!r} is no number of bits for rows: write auto, one number, or a range such as 0-2")
    return int(found[1]), int(found[2] or found[1])


@dataclass(frozen=True, slots=True)
class PassRequest:
    """A pass as asked for: its name and the options that differ from its defaults."""

    name: str
    options: Mapping[str, OptionValue] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the text that ``parse_passes`` reads as this request."""
        options = ",".join(f"{name}={_option_text(value)}" for name, value in self.options.items())
        return f"{self.name}{{{options}}}" if options else self.name


def parse_passes(text: str) -> tuple[PassRequest, ...]:
    """Return the passes of a list such as ``fold-batchnorm,calibrate{method=mse,bins=2048}``.

    Values are read as true/false, integers or floats where they look like one, else as text.

    Raises:
        UsageError: the text does not follow that form, or names an option twice.
    """
    item = re.compile(r"\s*([a-z][a-z0-9-]*)\s*(?:\{([^{}]*)\}\s*)?(?:,|$)")
    requests: list[PassRequest] = []
    position = 0
    while position < len(text):
        found = item.match(text, position)
        if not found:
            raise UsageError(
                f"cannot read the pass list {text!r} at {text[position:]!r}; write name,name{{option=value}}"
            )
        requests.append(PassRequest(found[1], _parse_options(found[1], found[2] or "")))
        position = found.end()
    if not requests or text.rstrip().endswith(","):
        raise UsageError(f"a pass name is missing in {text!r}; write name,name{{option=value}}")
    return tuple(requests)


def _parse_options(name: str, text: str) -> dict[str, OptionValue]:
    options: dict[str, OptionValue] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key.isidentifier() or not value:
            raise UsageError(f"cannot read option {part!r} of pass {name!r}; write option=value")
        if key in options:
            raise UsageError(f"option {key!r} of pass {name!r} is given twice; give it once")
        options[key] = _option_value(value)
    return options


def _option_value(text: str) -> OptionValue:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _option_text(value: OptionValue) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
