"""What the options of the main command become."""

import pytest

from qcompiler.recipe import Floors, Recipe


def test_plain_line_is_the_default_recipe(run, fake_compiler):
    assert run("m.onnx").code == 0
    (call,) = fake_compiler.calls
    assert call["recipe"] == Recipe()
    assert (call["out"], call["force"]) == (None, False)
    assert call["command"][0] == "qcompile"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--target", "arm:i8mm", "--target", "x86"], {"targets": ("arm:i8mm", "x86")}),
        (
            ["--data", "d", "--labels", "l.npy", "--metric", "a.b:c"],
            {"data": "d", "labels": "l.npy", "metric": "a.b:c"},
        ),
        (["-O0"], {"effort": 0}),
        (["-O3", "--max-time", "90s"], {"effort": 3, "max_time_s": 90.0}),
        (["--max-time", "1h30min", "--max-memory", "4GB"], {"max_time_s": 5400.0, "max_memory_bytes": 4 * 10**9}),
        (["--bits", "w4a16"], {"weight_bits": 4, "activation_bits": 16, "allocation": "mixed"}),
        (["--bits", "W3A8:uniform"], {"weight_bits": 3, "allocation": "uniform"}),
        (["--bits", "auto"], {"allocation": "auto"}),
        (["--fine-tune", "1.5"], {"fine_tune_minutes": 1.5}),
        (["-O", "1", "--seed", "3", "--threads", "2"], {"effort": 1, "seed": 3, "threads": 2}),
        (
            ["--calibration-samples", "5", "--verify-samples", "6"],
            {"calibration_samples": 5, "verify_samples": 6},
        ),
        (["--passes", "a,b{x=1}"], {"passes": ("a", "b{x=1}")}),
        (
            ["--skip-pass", "a", "--skip-pass", "b", "--dump-after", "c"],
            {"skip_passes": ("a", "b"), "dump_after": ("c",)},
        ),
        (["--require-data", "--allow-unchanged"], {"require_data": True, "allow_unchanged": True}),
        (["--plan", "old"], {"replay": "old"}),
        (["--min-sqnr", "20.5", "--max-drop", "1"], {"floors": Floors(min_sqnr_db=20.5, max_drop=1.0)}),
        (
            ["--min-agreement", "97%", "--max-size", "1.2MB", "--max-latency-ratio", "0.9"],
            {"floors": Floors(min_agreement=0.97, max_size_bytes=1_200_000, max_latency_ratio=0.9)},
        ),
    ],
)
def test_flags(run, fake_compiler, words, expected):
    assert run("m.onnx", *words).code == 0
    assert fake_compiler.calls[0]["recipe"] == Recipe(**expected)


def test_flags_lie_over_the_file(run, fake_compiler, tmp_path):
    (tmp_path / "q.toml").write_text("seed = 7\nthreads = 4\n[floors]\nmin_sqnr = 10\nmax_drop = 2\n")
    assert run("m.onnx", "--config", tmp_path / "q.toml", "--threads", 2, "--min-sqnr", 20).code == 0
    recipe = fake_compiler.calls[0]["recipe"]
    assert (recipe.seed, recipe.threads) == (7, 2)
    assert recipe.floors == Floors(min_sqnr_db=20.0, max_drop=2.0)


def test_output_options(run, fake_compiler, tmp_path):
    assert run("m.onnx", "-o", tmp_path / "out", "--force").code == 0
    (call,) = fake_compiler.calls
    assert (call["out"], call["force"]) == (tmp_path / "out", True)


def test_dry_run_compiles_nothing(run, fake_compiler):
    result = run("m.onnx", "--dry-run")
    assert (result.code, result.out) == (0, "planned\n")
    assert fake_compiler.calls == []
