"""The benchmark of weights below 8 bits: its arithmetic, what it reads from files, and its public part."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import below_8_bits, low_bit_tables
from benchmarks.answers import (
    LEAST_PROBABILITY,
    Answers,
    Change,
    answers,
    bootstrap_interval,
    change,
    is_distribution,
    losses_by_row,
    output_levels,
)
from benchmarks.low_bits import (
    MIXED,
    PLAIN,
    RIVAL,
    UNIFORM,
    Run,
    Setting,
    budget_words,
    ends_in_eight_bits,
    load_run,
    report_facts,
    save_run,
    words,
)
from benchmarks.stored import Storage, StoredWeight, original_weights, storage, unexpected_sizes
from qcompiler.data.split import split

RESNET = "cifar10_resnet20"


def flags(*numbers):
    return np.array(numbers, bool)


def test_cross_entropy_of_logits_is_that_of_their_softmax():
    logits = np.array([[2.0, 0.0, -1.0], [0.5, 3.0, 0.0]], np.float32)
    labels = np.array([0, 0])
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert not is_distribution(logits)
    assert is_distribution(shares)
    expected = -np.log(shares[[0, 1], labels])
    for outputs in (logits, shares, logits + 500):
        found = answers(outputs, labels)
        np.testing.assert_allclose(found.cross_entropy, expected, rtol=1e-5)
        assert found.right.tolist() == [True, False]
        assert found.chosen.tolist() == [0, 1]


def test_one_row_cannot_decide_a_mean_cross_entropy():
    labels = np.array([1])
    for outputs in ([[1.0, 0.0]], [[900.0, -900.0]]):
        assert answers(np.array(outputs), labels).cross_entropy[0] == pytest.approx(-np.log(LEAST_PROBABILITY))


def test_a_change_counts_lost_and_gained_answers():
    original = Answers(np.array([1, 2, 3, 4]), flags(1, 1, 0, 0), np.array([0.1, 0.2, 3.0, 4.0]))
    found = Answers(np.array([1, 7, 5, 4]), flags(1, 0, 1, 0), np.array([0.2, 0.1, 1.0, 4.0]))
    result = change(original, found)
    assert result.lost.tolist() == [False, True, False, False]
    assert result.gained.tolist() == [False, False, True, False]
    assert result.agrees.tolist() == [True, False, False, True]
    assert result.points == 0.0
    np.testing.assert_allclose(result.entropy_rise, [0.1, -0.1, -2.0, 0.0])


def test_the_interval_is_that_of_the_mean_of_rows():
    rng = np.random.default_rng(3)
    rows = rng.choice([-100.0, 0.0, 100.0], size=1000, p=[0.05, 0.85, 0.10])
    low, high = bootstrap_interval(rows)
    error = rows.std() / np.sqrt(rows.size)
    assert low == pytest.approx(rows.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(rows.mean() + 1.96 * error, abs=0.15 * error)
    assert bootstrap_interval(rows) == (low, high)
    assert bootstrap_interval(np.full(10, 2.5)) == (2.5, 2.5)


def test_seeds_are_averaged_row_by_row():
    none = np.zeros(2)
    first = Change(flags(1, 0), flags(0, 0), flags(0, 1), none)
    second = Change(flags(1, 0), flags(0, 1), flags(0, 0), none)
    assert losses_by_row([first, second]).tolist() == [100.0, -50.0]


def test_levels_are_over_all_rows():
    reference = {"y": np.array([[1.0, 0.0], [3.0, 0.0]])}
    found = {"y": np.array([[1.0, 0.0], [3.0, 1.0]])}
    assert output_levels(reference, found) == {"y": pytest.approx(10.0)}


@pytest.mark.parametrize("rows", [100, 256, 512])
def test_no_calibration_row_is_left_out(rows):
    options = budget_words(rows)
    found = split(rows, int(options[1]), int(options[3]), seed=0)
    used = [*found.calibration, *found.acceptance, *found.verification]
    assert sorted(used) == list(range(rows))
    assert len(found.verification) == rows // 8


def test_no_floor_can_stop_a_run_and_add_bits():
    found = words(Setting(3), seed=2, rows=100)
    for option, value in (("--min-agreement", "0"), ("--bits", "W3A8"), ("--seed", "2"), ("-O1", "--seed")):
        assert found[found.index(option) + 1] == value
    assert "--min-sqnr=-1000" in found
    assert "--min-agreement" not in words(Setting(3), seed=2, rows=100, classes=False)
    assert "--fine-tune" not in found
    assert words(Setting(2, UNIFORM, 2, 3.0), 0, 9)[-2:] == ["--fine-tune", "3"]
    assert Setting(2, UNIFORM).bits == "W2A8:uniform"
    assert Setting(8, UNIFORM).bits == "W8A8"
    alone = words(Setting(4, "gptq"), 0, 9)[-1]
    assert "solve-codes{solvers=gptq}" in alone
    assert "allocate-bits" in alone
    assert "solve-codes" not in words(Setting(4, PLAIN), 0, 9)[-1]


def unpacking_model(path, bits=4, count=30):
    """A convolution in 8 bits before one whose codes are unpacked with a product, and a scale for both."""
    size = -(-bits * count // 8)
    constants = {
        "w": np.zeros((3, 2, 1, 1), np.int8),
        "stream": np.zeros(size, np.uint8),
        "bases": np.ones((1, 1), np.int64),
        "column": np.array([-1, 1]),
        "shape": np.array([10, 3, 1, 1]),
        "s": np.float32(1),
        "z": np.int8(0),
    }
    nodes = [
        helper.make_node("Reshape", ["stream", "column"], ["r"]),
        helper.make_node("Cast", ["r"], ["i"], to=TensorProto.INT64),
        helper.make_node("MatMul", ["i", "bases"], ["m"]),
        helper.make_node("Reshape", ["m", "shape"], ["v_q"]),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wf"]),
        helper.make_node("Conv", ["x", "wf"], ["h"]),
        helper.make_node("DequantizeLinear", ["v_q", "s", "z"], ["vf"]),
        helper.make_node("Conv", ["h", "vf"], ["y"]),
        helper.make_node("Conv", ["h", "vf"], ["y2"]),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("x", "y")]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], tensors)), path)


def float_model(path, *shapes, names=()):
    nodes, tensors = [], []
    for index, shape in enumerate(shapes):
        name = names[index] if names else f"n{index}"
        nodes.append(helper.make_node("Conv", [f"x{index}", f"w{index}"], [f"x{index + 1}"], name=name))
        tensors.append(numpy_helper.from_array(np.zeros(shape, np.float32), f"w{index}"))
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("x0", f"x{len(shapes)}")]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], tensors)), path)


def test_stored_bits_are_read_from_the_file(tmp_path):
    compiled, original = tmp_path / "compiled.onnx", tmp_path / "original.onnx"
    unpacking_model(compiled)
    float_model(original, (3, 2, 1, 1), (10, 3, 1, 1))
    found = storage(compiled, original)
    assert found.weights == (StoredWeight("w", 6, 6, packed=False), StoredWeight("v_q", 30, 15, packed=True))
    assert found.original_weights == original_weights(original) == 36
    assert found.mean_bits == pytest.approx(8 * 21 / 36)
    graph = onnx.load(compiled).graph
    unpacking = [t.ByteSize() for t in graph.initializer if t.name in ("bases", "column", "shape")]
    assert found.unpacking_each == sum(unpacking) + sum(node.ByteSize() for node in graph.node[:4])


def test_weights_that_take_more_than_their_bits_are_found():
    exact = Storage((StoredWeight("a", 3, 2, True), StoredWeight("b", 5, 3, True)), 8, 100)  # 12 and 20 bits
    assert exact.within(4)
    assert not replace(exact, weights=(StoredWeight("a", 3, 3, False), exact.weights[1])).within(4)
    assert not exact.within(3)
    large = Storage((StoredWeight("a", 1000, 500, True), StoredWeight("b", 1000, 625, True)), 2000, 100)
    assert not large.within(4)
    assert large.mean_bits == 4.5
    assert large.within(5)


def test_sizes_other_than_those_planned_are_named(tmp_path):
    plan = tmp_path / "plan.json"
    plan.write_text('{"tensors": [{"name": "v", "role": "weight", "spec": {"num_bits": 4}}]}', encoding="utf-8")
    exact = Storage((StoredWeight("v_q", 31, 16, packed=True),), 31, 0)
    assert unexpected_sizes(exact, plan) == []
    larger = replace(exact, weights=(StoredWeight("v_q", 31, 17, packed=True),))
    assert unexpected_sizes(larger, plan) == ["v_q: 17 bytes for 31 weights of 4 bits"]
    unknown = replace(exact, weights=(StoredWeight("u_q", 31, 16, packed=True),))
    assert len(unexpected_sizes(unknown, plan)) == 1


def test_the_ends_are_the_first_and_the_last_layer(tmp_path):
    path = tmp_path / "model.onnx"
    float_model(path, (1, 1, 1, 1), (1, 1, 1, 1), (1, 1, 1, 1), names=("a.b", "mid", "z"))
    text = ends_in_eight_bits(path)
    assert r"'^a\.b$'" in text
    assert "'^z$'" in text
    assert "mid" not in text
    float_model(path, (1, 1, 1, 1), (1, 1, 1, 1), (1, 1, 1, 1), names=("", "mid", "z"))
    assert ends_in_eight_bits(path) == "", "a layer without a name cannot be chosen by it"


def made_run(points, *, seed=0, width=4, within=True, agreement=1.0, **fields):
    """A run on 1,000 rows that lost ``points`` of top-1."""
    lost, agrees = np.zeros(1000), np.zeros(1000)
    lost[: round(points * 10)] = 1
    agrees[: round(agreement * 1000)] = 1
    changes = {"lost": lost, "gained": np.zeros(1000), "agrees": agrees, "entropy_rise": np.full(1000, 0.25)}
    given = {
        "model": RESNET,
        "setting": Setting(width),
        "seed": seed,
        "command": "",
        "wall_seconds": 1.0,
        "peak_bytes": 10,
        "changes": {name: values.tolist() for name, values in changes.items()},
        "levels_db": {"y": 20.0},
        "within": within,
        "mean_bits": float(width),
    }
    return Run(**{**given, **fields})


def test_a_cell_is_met_by_the_mean_of_its_seeds():
    seeds = [made_run(0.2), made_run(0.8, seed=1)]
    assert low_bit_tables.is_met(RESNET, Setting(4), seeds)
    assert not low_bit_tables.is_met(RESNET, Setting(4), [*seeds, made_run(0.7, seed=2)])
    assert not low_bit_tables.is_met(RESNET, Setting(4), [made_run(0.1, agreement=0.94)])
    assert low_bit_tables.is_met(RESNET, Setting(3), [made_run(1.5, width=3, agreement=0.5)])
    assert not low_bit_tables.is_met(RESNET, Setting(4), [made_run(0.1, within=False)])
    assert not low_bit_tables.is_met(RESNET, Setting(4), [made_run(0.1), made_run(0.1, levels_db={})])
    assert low_bit_tables.is_met(RESNET, Setting(8), [made_run(0.1, width=8)]) is None
    assert low_bit_tables.is_met(RESNET, Setting(4, RIVAL), [made_run(0.1)]) is None


def test_a_detector_is_met_by_its_worst_output_and_its_size():
    good = made_run(0, model="ultraface", changes={}, levels_db={"scores": 39.0, "boxes": 38.5}, file_bytes=310_000)
    assert low_bit_tables.is_met("ultraface", Setting(4), [good])
    for worse in ({"levels_db": {"scores": 45.0, "boxes": 37.9}}, {"file_bytes": 330_000}):
        assert not low_bit_tables.is_met("ultraface", Setting(4), [replace(good, **worse)])


def test_a_section_shows_means_and_the_worst_seed():
    runs = [made_run(0.2), made_run(0.8, seed=1)]
    model = next(m for m in below_8_bits.MODELS if m.name == RESNET)
    text = low_bit_tables.loss_section(model, low_bit_tables.cells(runs, RESNET))
    row = next(line for line in text.splitlines() if line.startswith("| W4A8"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:4] == ["W4A8", "`mixed -O1`", "0, 1", "+0.50"]
    assert cells[5:9] == ["+0.80", "+0.250", "100.0", "5 / 0"]
    assert cells[-1] == "yes"


def test_what_a_report_says_is_kept(tmp_path):
    stages = [
        {"name": "first result", "outcome": "verified", "seconds": 9.0, "before_db": None, "after_db": 10.0},
        {
            "name": "fine-tune",
            "outcome": "not better",
            "seconds": 180.4,
            "before_db": 10.0,
            "after_db": 9.5,
            "detail": "",
        },
        {"name": "other", "outcome": "failed", "seconds": 1.0, "before_db": 10.0, "after_db": None, "detail": "why"},
    ]
    metrics = [
        {"name": "solved", "value": 5},
        {"name": "won by gptq", "value": 2},
        {"name": "won by best rows", "value": 3},
    ]
    contest = {"name": "solve-codes", "metrics": metrics}
    report = {
        "verdict": {"stored_bytes": {"scales": 7}},
        "measured": {
            "stages": [{"name": "deciding", "seconds": 3.0}],
            "loads": {"original": {"ms": 2.0, "peak_bytes": 10}, "result": {"ms": 3.0, "peak_bytes": 20}},
            "search": {"stages": stages},
        },
        "passes": [{"name": "place", "metrics": []}, contest, {**contest, "metrics": metrics[:2]}],
        "frontier": {"correlation": 0.9},
        "data": {"calibration": [0, 1, 4], "acceptance": [2], "verification": [3]},
        "versions": {"numpy": "2"},
    }
    weights = [{"role": "weight", "spec": {"num_bits": bits}} for bits in (8, 4, 4)]
    plan = {"tensors": [*weights, {"role": "activation", "spec": {"num_bits": 8}}, {"role": "weight", "spec": None}]}
    for name, document in (("report", report), ("plan", plan)):
        (tmp_path / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
    found = report_facts(tmp_path)
    assert found["wins"] == {"gptq": 2, "best rows": 3}
    assert found["widths"] == {"4": 2, "8": 1}
    assert found["load"] == {"ms": 1.5, "peak_bytes": 2.0, "bytes": 20}
    assert found["split"] == (3, 1, 1)
    assert found["searches"] == (
        "fine-tune not better, 10.00 -> 9.50 dB in 180 s",
        "other failed, 10.00 -> - dB in 1 s, why",
    )
    del report["measured"]["search"], report["measured"]["loads"], report["frontier"]
    (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    plain = report_facts(tmp_path)
    assert (plain["searches"], plain["load"], plain["correlation"]) == ((), {}, None)


def test_runs_are_kept_whole(tmp_path):
    run = made_run(0.3, split=(66, 22, 12), wrong_sizes=("a",), widths={"4": 2})
    save_run(run, tmp_path / "run.json")
    assert load_run(tmp_path / "run.json") == run
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_settings_are_not_run_twice(capsys):
    given = below_8_bits.parse_arguments(["--widths", "8,4,3", "--kinds", f"{MIXED},{UNIFORM},{RIVAL}"])
    assert given.settings == (
        Setting(8), Setting(4), Setting(4, UNIFORM), Setting(4, RIVAL), Setting(3), Setting(3, UNIFORM)
    )  # fmt: skip
    for wrong in (["--models", "nosuch"], ["--kinds", "nosuch"], ["--widths", "four"], ["--data", "/nosuch"]):
        with pytest.raises(SystemExit):
            below_8_bits.parse_arguments(wrong)
    assert "known: digits_cnn" in capsys.readouterr().err


@pytest.mark.slow
def test_the_public_part_runs_and_resumes(tmp_path, capsys, monkeypatch):
    words_given = ["--models", "digits_cnn", "--widths", "8,4", "--kinds", "mixed", "--keep", str(tmp_path)]
    below_8_bits.main(words_given)
    text = capsys.readouterr().out
    for section in ("## Reach", "### digits_cnn", "## Sizes and loading", "## Latency", "## Solvers and sensitivities"):
        assert section in text
    kept = load_run(tmp_path / "digits_cnn-w4-mixed-o1-t0-s0.json")
    assert kept.within
    assert kept.wrong_sizes == ()
    assert kept.packed > 0
    assert 3.5 < kept.mean_bits <= 4.01
    assert kept.change.agrees.mean() > 0.9
    assert str(tmp_path) not in text
    monkeypatch.setattr(below_8_bits, "compiled", None)
    below_8_bits.main(words_given)
    assert capsys.readouterr().out == text
