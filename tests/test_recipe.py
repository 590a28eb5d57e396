"""Recipes: from TOML and flags, and what is refused."""

import pytest

from qcompiler.errors import UsageError
from qcompiler.recipe import Floors, MatchRule, PassRequest, Recipe, bits_fields, parse_passes
from qcompiler.recipe_file import load_recipe, parse_share, parse_size
from qcompiler.sparsity import parse_sparsity

FILE = """
targets = ["arm:cortex-a72", "x86"]
data = "samples.npz"
metric = "top1"
effort = 0
passes = "fold-batch-norm,calibrate{method=mse,bins=2048}"
seed = 7

[floors]
min_sqnr = 30
min_agreement = "97%"
max_size = "1.2MB"

[image]
size = [224, 192]
resize = 256
mean = [0.485, 0.456, 0.406]
std = 0.5

[match."conv"]
bits = 8
[match."conv1|head"]
keep_float = true
[match."a"]
scheme = "weight_only"
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "qcompile.toml"
    path.write_text(FILE)
    return path


def test_every_part_of_a_file(file):
    recipe = load_recipe(file, {})
    assert recipe.targets == ("arm:cortex-a72", "x86")
    assert recipe.data == str(file.parent / "samples.npz")
    assert (recipe.metric, recipe.effort, recipe.seed) == ("top1", 0, 7)
    assert recipe.passes == ("fold-batch-norm", "calibrate{method=mse,bins=2048}")
    assert recipe.floors == Floors(min_sqnr_db=30.0, min_agreement=0.97, max_size_bytes=1_200_000)
    assert (recipe.image.size, recipe.image.resize) == ((224, 192), 256)
    assert (recipe.image.mean, recipe.image.std) == ((0.485, 0.456, 0.406), (0.5,))
    assert [rule.pattern for rule in recipe.rules] == ["conv", "conv1|head", "a"]
    assert [(r.num_bits, r.keep_float, r.scheme) for r in recipe.rules] == [
        (8, False, "auto"),
        (None, True, "auto"),
        (None, False, "weight_only"),
    ]


def test_flags_override_the_file(file):
    recipe = load_recipe(file, {"targets": ("x86",), "seed": None, "floors": {"min_sqnr": 20.0, "max_drop": None}})
    assert recipe.targets == ("x86",)
    assert recipe.seed == 7
    assert (recipe.floors.min_sqnr_db, recipe.floors.max_size_bytes) == (20.0, 1_200_000)


@pytest.mark.parametrize(
    ("text", "widths"), [("W8A16", (8, 16)), ("w4a8", (4, 8)), (" W1A4 ", (1, 4)), ("W8A8", (8, 8))]
)
def test_widths(tmp_path, text, widths):
    path = tmp_path / "q.toml"
    path.write_text(f'bits = "{text}"')
    for recipe in (load_recipe(path, {}), load_recipe(None, {"bits": text}), load_recipe(path, {"bits": text.lower()})):
        assert (recipe.weight_bits, recipe.activation_bits) == widths
        assert recipe.bits == text.strip().upper()
        assert recipe.to_json()["activation_bits"] == widths[1]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("10min", 600),
        ("2h", 7200),
        ("1h30min", 5400),
        ("1.5 min", 90),
        ("1h 2min 3s", 3723),
        (45, 45),
        (0.5, 0.5),
    ],
)
def test_durations(text, seconds):
    assert load_recipe(None, {"max_time": text}).max_time_s == seconds


@pytest.mark.parametrize("widths", [{"weight_bits": 0}, {"weight_bits": 9}, {"activation_bits": 5}])
def test_widths_that_do_not_exist(widths):
    with pytest.raises(UsageError, match=r"no such widths: W\dA\d; write W8A8"):
        Recipe(**widths)


def test_nothing_given_is_the_default_recipe():
    assert load_recipe(None, {}) == Recipe()


def test_callable_data_is_not_taken_for_a_path(tmp_path):
    (tmp_path / "q.toml").write_text('data = "loader:samples"')
    assert load_recipe(tmp_path / "q.toml", {}).data == "loader:samples"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("thread = 2", "unknown key 'thread'; did you mean 'threads'"),
        ("[floor]\nmin_sqnr = 1", "did you mean 'floors'"),
        ("[floors]\nmin_snr = 1", r"\[floors\]: unknown key 'min_snr'; did you mean 'min_sqnr'"),
        ("[image]\nmeans = 1", r"\[image\]: unknown key 'means'; did you mean 'mean'"),
        ('[match."a"]\nbit = 8', r"\[match.\"a\"\]: unknown key 'bit'; did you mean 'bits'"),
        ("zzz = 1", "unknown key 'zzz'; known are targets"),
        ("threads = 'two'", "threads is 'two'; it must be an integer"),
        ("threads = true", "it must be an integer"),
        ("threads = 0", "threads must be at least 1"),
        ("require_data = 1", "it must be true or false"),
        ("effort = 4", "there is no -O4; effort goes from -O0 to -O3"),
        ("max_time = 'soon'", "'soon' is not a duration; write 90s, 10min, 2h or 1h30min"),
        ("max_time = ''", "is not a duration"),
        ("max_time = '90s 10min'", "is not a duration"),
        ("max_time = -1", "is not a duration"),
        ("max_time = true", "is not a duration"),
        ("max_time = 0", "max_time is 0.0; it must be more than 0"),
        ("max_memory = '0GB'", "max_memory is 0; it must be more than 0"),
        ("max_memory = 'much'", "'much' is not a size"),
        ("targets = []", "no target given"),
        ("metric = 'top5'", "metric is 'top5'"),
        ("floors = 3", "it must be a table"),
        ("[floors]\nmax_size = 'big'", "'big' is not a size"),
        ("[floors]\nmin_agreement = 'all'", "'all' is not a share"),
        ("[floors]\nmin_agreement = 101", "a share from 0 to 1"),
        ("[floors]\nmax_latency_ratio = -1", "must not be negative"),
        ("fine_tune = -1", "a number of minutes"),
        ("fine_tune = nan", "must be a number"),
        ("fine_tune = inf", "a number of minutes"),
        ("fine_tune = 1\neffort = 0", "-O0 rules searches out"),
        ("[floors]\nmin_sqnr = nan", "it must be a number"),
        ("[image]\nlayout = 'CHW'", "image.layout is 'CHW'"),
        ("[image]\nsize = [0, 5]", r"it must be \[height, width\]"),
        ("[image]\nstd = 0", "must not hold a 0"),
        ('[match."("]\nbits = 8', "not a regular expression"),
        ('[match."a"]\nbits = 9', r'\[match."a"\]: bits = 9; weights have 1 to 8 bits'),
        ('[match."a"]\nbits = 0', "weights have 1 to 8 bits"),
        ("bits = 'W9A8'", "'W9A8' is no pair of widths; write W8A8"),
        ("bits = 'A8W8'", "no pair of widths"),
        ("bits = 'W8A8x'", "no pair of widths"),
        ("bits = 8", "bits is 8; it must be a text"),
        ('[match."a"]\nscheme = "int8"', "scheme is 'int8'"),
        ("passes = 'a{b}'", "cannot read option 'b' of pass 'a'"),
        ("a = = 1", "is not valid TOML"),
    ],
)
def test_refused_files(tmp_path, text, message):
    path = tmp_path / "q.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        load_recipe(path, {})
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(UsageError, match="cannot read"):
        load_recipe(tmp_path / "none.toml", {})


def test_pass_list():
    text = "place, calibrate{method=mse,percentile=99.9,exact=true,bins=-2} ,insert-qdq"
    requests = parse_passes(text)
    assert requests == (
        PassRequest("place"),
        PassRequest("calibrate", {"method": "mse", "percentile": 99.9, "exact": True, "bins": -2}),
        PassRequest("insert-qdq"),
    )
    assert parse_passes(",".join(map(str, requests))) == requests


@pytest.mark.parametrize("text", ["", "a,,b", "a,", "a{x=1", "a}", "a{x}", "a{x=1,x=2}", "a{=1}", "A", "a b"])
def test_refused_pass_lists(text):
    with pytest.raises(UsageError):
        parse_passes(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [(12, 12), ("12", 12), ("500KB", 500_000), ("1.2MB", 1_200_000), ("1MiB", 2**20), ("2 gb", 2 * 10**9)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "KB", "-1", "1TBB", "1 2", "1e3"])
def test_refused_sizes(text):
    with pytest.raises(UsageError):
        parse_size(text)


@pytest.mark.parametrize(("text", "share"), [("97%", 0.97), ("0.97", 0.97), (97, 0.97), ("1", 1.0), ("0.5%", 0.005)])
def test_shares(text, share):
    assert parse_share(text) == share


@pytest.mark.parametrize(
    ("text", "fields", "shown"),
    [
        ("auto", {"allocation": "auto"}, "auto"),
        ("W4A8", {"weight_bits": 4, "activation_bits": 8, "allocation": "mixed"}, "W4A8"),
        ("w3a4:Uniform", {"weight_bits": 3, "activation_bits": 4, "allocation": "uniform"}, "W3A4:uniform"),
        ("W8A8", {"weight_bits": 8, "activation_bits": 8, "allocation": "uniform"}, "W8A8"),
        ("W0.8A8", {"weight_bits": 1, "activation_bits": 8, "allocation": "uniform", "xor_bits": 0.8}, "W0.8A8"),
        ("w.6a16", {"weight_bits": 1, "activation_bits": 16, "allocation": "uniform", "xor_bits": 0.6}, "W0.6A16"),
        ("W1.0A8", {"weight_bits": 1, "activation_bits": 8, "allocation": "uniform", "xor_bits": 1.0}, "W1.0A8"),
    ],
)
def test_bits_say_how_widths_are_chosen(text, fields, shown):
    assert bits_fields(text) == fields
    assert Recipe(**fields).bits == shown


@pytest.mark.parametrize("text", ["W4A8:random", "W4", "automatic", ":uniform", "W1.5A8", "W0.8", "W0.8A8:mixed"])
def test_other_bits_are_refused(text):
    with pytest.raises(UsageError, match="write"):
        bits_fields(text)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"xor_bits": 0.05}, "0.1 to 1.0"),
        ({"xor_bits": 0.8, "weight_bits": 4}, "no such width: W0.8"),
        ({"xor_bits": 0.8, "sparsity": parse_sparsity("0.5")}, "leave one out"),
    ],
)
def test_a_fraction_of_a_bit_that_makes_no_sense_is_refused(fields, said):
    with pytest.raises(UsageError, match=said):
        Recipe(**{"weight_bits": 1, **fields})


def test_the_last_rule_that_finds_a_name_counts():
    rules = (MatchRule(pattern="conv", num_bits=4), MatchRule(pattern="conv1", num_bits=5), MatchRule(pattern="fc"))
    recipe = Recipe(rules=rules)
    assert recipe.rule_of(["conv1", "w"]).num_bits == 5
    assert recipe.rule_of(["other", "conv2.w"]).num_bits == 4
    assert recipe.rule_of(["other"]) is None


@pytest.mark.parametrize(
    ("text", "share", "allocation", "pattern"),
    [
        ("0.7", 0.7, "measured", None),
        ("70%", 0.7, "measured", None),
        ("0", 0.0, "measured", None),
        ("0.5:uniform", 0.5, "uniform", None),
        ("auto", None, "measured", None),
        ("AUTO:uniform", None, "uniform", None),
        ("2:4", 0.5, "uniform", (2, 4)),
        ("1:4", 0.75, "uniform", (1, 4)),
    ],
)
def test_sparsities_are_read(text, share, allocation, pattern):
    found = parse_sparsity(text)
    assert (found.share, found.allocation, found.pattern) == (share, allocation, pattern)
    assert parse_sparsity(str(found)) == found


@pytest.mark.parametrize(
    "text", ["1", "100%", "1.5", "-0.1", "nan", "some", "", "0.5:mixed", "4:2", "0:4", "2:0", "70"]
)
def test_impossible_sparsities_are_refused(text):
    with pytest.raises(UsageError):
        parse_sparsity(text)


def test_rules_hold_a_sparsity_from_0_to_below_1():
    assert MatchRule(pattern="a", sparsity=0.0).sparsity == 0.0
    with pytest.raises(UsageError, match="from 0 to below 1"):
        MatchRule(pattern="a", sparsity=1.0)


def test_a_file_and_the_command_line_say_the_sparsity(tmp_path):
    path = tmp_path / "qcompile.toml"
    path.write_text('sparsity = 0.6\n[match."head"]\nsparsity = 0.2\n', encoding="utf-8")
    recipe = load_recipe(path, {})
    assert str(recipe.sparsity) == "0.6"
    assert recipe.rules[0].sparsity == 0.2
    assert str(load_recipe(path, {"sparsity": "auto"}).sparsity) == "auto"
    assert load_recipe(None, {}).sparsity is None
