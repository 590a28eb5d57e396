"""Bits of embedding rows: what is asked for, what is counted, what the plan holds, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from onnx import helper

from qcompiler.compiler import compile_model
from qcompiler.errors import DataError, UsageError
from qcompiler.executor.lookup_metric import lookup_metrics
from qcompiler.lookups import find_tables, read_counts, refuse_gate_counts
from qcompiler.plan import CompressionPlan, Precision, Role
from qcompiler.recipe import MatchRule, Recipe
from qcompiler.row_codes import RowKind
from tests.compiling import context, run_passes, start
from tests.models import FLOAT, build, save
from tests.passes.tables import COLUMNS, INT64, ROWS, lookup_net, sentence_data, sentence_net, table

LENGTH = 12


def decided(proto=None, options: str = "", **asked):
    """Return the entry of table ``w`` and the report of the pass."""
    state = start(sentence_net() if proto is None else proto)
    where = context("x86", asked.pop("samples", sentence_data()))
    recipe = replace(where.recipe, **{"embedding_bits": (1, 2), **asked})
    where = replace(where, recipe=recipe)
    found = run_passes(state, where, "place", f"embedding-bits{options}")
    return found.plan.tensors.get("w"), found


def test_nothing_is_done_unless_it_is_asked_for():
    entry, _ = decided(embedding_bits=None)
    assert entry is None or entry.role is Role.WEIGHT


@pytest.mark.parametrize("bits", [(0, 2), (1, 2), (1, 3), (3, 3)])
def test_rows_keep_to_what_was_asked(bits):
    entry, state = decided(embedding_bits=bits)
    assert entry.role is Role.TABLE
    assert entry.rows.kind is RowKind.PRODUCT
    assert entry.rows.bits.min() >= bits[0]
    assert entry.rows.bits.max() <= bits[1]
    assert state.plan.nodes["embed"].precision is Precision.WEIGHT_ONLY
    assert state.plan.compresses


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_equal_bits_become_grids(bits):
    entry, _ = decided(embedding_bits=(bits, bits))
    assert entry.rows.kind is RowKind.GRID
    error = np.square(entry.rows.decode() - table()).sum() / np.square(table() - table().mean(0)).sum()
    assert error < {2: 0.14, 4: 0.015, 8: 1e-4}[bits]


def test_signs_by_option():
    entry, _ = decided(options="{codes=binary}")
    assert entry.rows.kind is RowKind.BINARY
    assert entry.rows.tables.size == 0


def test_the_bytes_hold_for_everything_that_is_stored():
    for size in (14_000, 16_000):
        entry, _ = decided(embedding_bytes=size * 2, embedding_bits=(0, 2))
        assert entry.rows.stored_bytes <= size * 2
        assert entry.rows.bits.any()


def test_read_rows_get_more_bits_than_others(tmp_path):
    counts = np.ones(ROWS)
    counts[40:80] = 500
    np.save(tmp_path / "counts.npy", counts)
    entry, _ = decided(token_counts=str(tmp_path / "counts.npy"))
    others = np.delete(entry.rows.bits, np.s_[40:80])
    assert entry.rows.bits[40:80].mean() > others.mean() + 0.2
    assert others.min() >= 1


def test_counts_of_the_samples_are_those_of_a_file(tmp_path):
    samples = sentence_data()
    ids = np.concatenate([s["ids"].reshape(-1) for s in samples.samples])
    (tmp_path / "counts.json").write_text(json.dumps(np.bincount(ids, minlength=ROWS).tolist()))
    counted, _ = decided(samples=samples)
    given, _ = decided(samples=samples, token_counts=str(tmp_path / "counts.json"))
    np.testing.assert_array_equal(counted.rows.bits, given.rows.bits)


def test_the_clusters_and_the_optimum_are_reported_and_either_can_be_taken():
    best, _ = decided()
    clusters, _ = decided(options="{allocation=clusters}")
    assert not np.array_equal(best.rows.bits, clusters.rows.bits)
    state = start(sentence_net())
    where = context("x86", sentence_data())
    where = replace(where, recipe=replace(where.recipe, embedding_bits=(1, 2)))
    _, reports = run_reports(state, where)
    notes = " ".join(reports["embedding-bits"].notes)
    assert "w, rows one by one:" in notes
    assert "w, clusters:" in notes


def run_reports(state, where):
    from qcompiler.pipeline import Pipeline
    from qcompiler.registry import make_pass

    passes = tuple(make_pass(n) for n in ("place", "embedding-bits"))
    found, reports = Pipeline(passes).run(state, where)
    return found, {r.name: r for r in reports}


def test_an_error_budget():
    entry, _ = decided(options="{max_error=0.15}", embedding_bits=(0, 4))
    tighter, _ = decided(options="{max_error=0.03}", embedding_bits=(0, 4))
    assert entry.rows.stored_bytes < tighter.rows.stored_bytes


def test_the_metric_weighs_columns_by_what_they_do():
    state = start(sentence_net())
    found = lookup_metrics(state.model, {"w": [("e", "ids")]}, sentence_data(), 0)["w"]
    weight = np.diag(found.metric)
    assert np.trace(found.metric) == pytest.approx(COLUMNS)
    assert weight[:8].mean() > 2 * weight[-8:].mean()  # the matrix behind falls a hundredfold
    assert found.readings.sum() == 6 * LENGTH
    assert (found.power[found.readings == 0] == 0).all()
    measured, _ = decided()
    alike, _ = decided(options="{measured=false}")
    errors = [np.square((e.rows.decode() - table()) @ np.diag(weight)).sum() for e in (measured, alike)]
    assert errors[0] < errors[1]


def test_the_plan_survives_saving(tmp_path):
    entry, state = decided(options="{codes=binary}", embedding_bits=(0, 3))
    state.plan.save(tmp_path)
    loaded = CompressionPlan.load(tmp_path)
    np.testing.assert_array_equal(loaded.tensors["w"].rows.decode(), entry.rows.decode())
    assert loaded.digest() == state.plan.digest()


def test_the_same_seed_gives_the_same_plan():
    first, again = (decided()[1].plan.digest() for _ in range(2))
    assert first == again


def test_positions_are_left_alone():
    nodes = [
        helper.make_node("Gather", ["w", "ids"], ["e"], name="embed"),
        helper.make_node("Shape", ["ids"], ["s"], name="shape", start=1),
        helper.make_node("Squeeze", ["s"], ["l"], name="squeeze"),
        helper.make_node("Range", ["zero", "l", "one"], ["p"], name="positions"),
        helper.make_node("Gather", ["v", "p"], ["q"], name="position"),
        helper.make_node("Add", ["e", "q"], ["y"], name="sum"),
    ]
    constants = {"w": table(), "v": table(seed=1), "zero": np.asarray(0), "one": np.asarray(1)}
    proto = build(nodes, [("ids", INT64, [1, "n"])], [("y", FLOAT, [1, "n", COLUMNS])], constants)
    assert [t.name for t in find_tables(start(proto).model)] == ["w"]


def test_a_rule_keeps_a_table_in_float():
    rules = (MatchRule(pattern="^w$", keep_float=True),)
    assert decided(rules=rules)[0] is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1.0] * 299, "299 counts are of another vocabulary"),
        ([1.0, -1.0], "none negative"),
        ([0.0] * ROWS, "not all of them 0"),
        ({"a": 1}, "cannot be read as counts"),
        ([[1.0]], "one count per token"),
    ],
)
def test_bad_counts_are_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "counts.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=message):
        decided(token_counts=str(path))


def test_counts_that_are_no_array_are_refused(tmp_path):
    np.save(tmp_path / "counts.npy", np.asarray([{}], object), allow_pickle=True)
    with pytest.raises(UsageError, match="cannot be read as counts"):
        read_counts(tmp_path / "counts.npy")


def test_counting_on_the_gates_samples_is_refused(tmp_path):
    model, gate = start(sentence_net()).model, sentence_data(9)
    ids = np.concatenate([s["ids"].reshape(-1) for s in gate.samples])
    np.save(tmp_path / "counts.npy", np.bincount(ids, minlength=ROWS))
    with pytest.raises(DataError, match="verified on; count on other text"):
        refuse_gate_counts(model, str(tmp_path / "counts.npy"), gate)
    refuse_gate_counts(model, str(tmp_path / "counts.npy"), sentence_data(8))


def test_a_budget_below_the_smallest_size_is_refused():
    with pytest.raises(UsageError, match=r"takes at least \d+ of its share of 2000 bytes; allow more bytes, or fewer"):
        decided(embedding_bytes=2000)


def test_a_target_that_decodes_no_rows_says_so():
    state, where = start(sentence_net()), context("openvino", sentence_data())
    where = replace(where, recipe=replace(where.recipe, embedding_bits=(1, 2)))
    with pytest.raises(UsageError, match="decodes no rows of embeddings"):
        run_passes(state, where, "place", "embedding-bits")


@pytest.mark.parametrize("text", ["W4", "9", "2-1", "0", ""])
def test_bits_that_make_no_sense(text):
    from qcompiler.recipe_file import load_recipe

    with pytest.raises(UsageError, match=r"number of bits for rows|rows have 0 to 8 bits"):
        load_recipe(None, {"embedding_bits": text})


def test_counts_without_bits_are_refused():
    with pytest.raises(UsageError, match="give --embedding-bits auto too"):
        Recipe(token_counts="counts.npy")


def test_a_model_is_compiled_verified_and_replayed(tmp_path):
    model = save(sentence_net(), tmp_path)
    data = np.minimum(np.random.default_rng(0).geometric(0.05, (64, LENGTH)) - 1, ROWS - 1)
    np.savez(tmp_path / "tokens.npz", ids=data)
    recipe = Recipe(targets=("x86",), data=str(tmp_path / "tokens.npz"), embedding_bits=(4, 4))
    recipe = replace(recipe, floors=replace(recipe.floors, max_latency_ratio=100.0))
    (result,) = compile_model(model, recipe=recipe, out=tmp_path / "first")
    assert result.report.verdict.held
    layer = next(entry for entry in result.report.layers if entry.name == "embed")
    assert layer.bytes_after < layer.bytes_before / 4
    again = replace(recipe, replay=str(tmp_path / "first"))
    (replayed,) = compile_model(model, recipe=again, out=tmp_path / "second")
    first, second = ((r.folder / "model.onnx").read_bytes() for r in (result, replayed))
    assert first == second


def test_the_default_net_has_a_table():
    assert [t.name for t in find_tables(start(lookup_net()).model)] == ["w"]


# -- mixed columns -----------------------------------------------------------------------------------


def layered_net(layers: int, opset: int = 17):
    """Rows of a table with correlated columns, times matrices."""
    rng = np.random.default_rng(5)
    mix = rng.standard_normal((COLUMNS, COLUMNS)) * 0.7 ** np.arange(COLUMNS)[:, None]
    weights = {f"m{i}": (rng.standard_normal((COLUMNS, 40 * COLUMNS)) / 6).astype(np.float32) for i in range(layers)}
    nodes = [helper.make_node("Gather", ["w", "ids"], ["e"], name="embed")]
    nodes += [helper.make_node("MatMul", ["e", name], [f"y{name}"], name=f"times_{name}") for name in weights]
    ends = [(f"y{name}", FLOAT, [1, "length", 40 * COLUMNS]) for name in weights]
    rows = {"w": (rng.standard_normal((2000, COLUMNS)) @ mix).astype(np.float32)}
    return build(nodes, [("ids", INT64, [1, "length"])], ends, {**rows, **weights}, opset=opset)


@pytest.mark.parametrize(
    ("layers", "options", "mixed"),
    [(2, "", True), (1, "", False), (2, "{transform=false}", False), (2, "{codes=binary}", False)],
    ids=["much other work", "little other work", "not allowed", "signs"],
)
def test_columns_are_mixed_where_that_is_little_work(layers, options, mixed):
    entry, _ = decided(layered_net(layers), options)
    assert (entry.rows.transform is not None) == mixed
    saved = entry.rows.to_arrays()
    again = type(entry.rows).from_arrays(entry.rows.kind, saved)
    assert np.array_equal(again.decode(), entry.rows.decode())


def test_mixed_columns_run_as_planned(tmp_path):
    model = save(layered_net(2), tmp_path)
    samples = sentence_data(count=64)
    np.savez(tmp_path / "tokens.npz", ids=np.concatenate([samples[i]["ids"] for i in range(64)]))
    recipe = Recipe(targets=("x86",), data=str(tmp_path / "tokens.npz"), embedding_bits=(2, 3))
    recipe = replace(recipe, floors=replace(recipe.floors, max_latency_ratio=100.0))
    (result,) = compile_model(model, recipe=recipe, out=tmp_path / "first")
    assert result.report.verdict.held
    saved = CompressionPlan.load(result.folder)
    assert saved.tensors["w"].rows.transform is not None
    assert "columns are mixed by a matrix" in (result.folder / "report.json").read_text(encoding="utf-8")
