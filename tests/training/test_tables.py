"""Trained tables: they start at what their codes stand for, and training changes what that is, not the codes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from qcompiler.errors import QCompileError  # noqa: E402
from qcompiler.executor.binding import binding_of  # noqa: E402
from qcompiler.executor.executor import TorchExecutor  # noqa: E402
from qcompiler.executor.setup import prepare_search  # noqa: E402
from qcompiler.passes.fine_tune import _defaults  # noqa: E402
from qcompiler.plan import Role, TensorPlan  # noqa: E402
from qcompiler.registry import make_pass  # noqa: E402
from qcompiler.row_codes import RowKind  # noqa: E402
from qcompiler.state import Fact  # noqa: E402
from qcompiler.training.compressor import LevelCompressor  # noqa: E402
from qcompiler.training.driver import Schedule, Task, fine_tune  # noqa: E402
from qcompiler.training.measure import held_out_distance  # noqa: E402
from qcompiler.training.tables import TrainedRows  # noqa: E402
from tests.compiling import context, outputs, run_passes, samples, start  # noqa: E402
from tests.models import conv_net  # noqa: E402
from tests.passes.tables import ROWS, made_codes, mixing_codes, planned, sentence_data, sentence_net  # noqa: E402

CPU = torch.device("cpu")
MIXED = np.random.default_rng(0).integers(0, 4, ROWS).astype(np.uint8)
CASES = [
    (RowKind.PRODUCT, MIXED, 1),
    (RowKind.PRODUCT, np.zeros(ROWS, np.uint8), 1),
    ("mixed", MIXED, 1),
    (RowKind.BINARY, MIXED, 1),
    (RowKind.BINARY, np.full(ROWS, 2, np.uint8), 4),
    (RowKind.GRID, np.full(ROWS, 4, np.uint8), 1),
]


def codes_of(kind, bits, groups):
    return mixing_codes(bits) if kind == "mixed" else made_codes(kind, bits, groups=groups)


@pytest.mark.parametrize(("kind", "bits", "groups"), CASES)
def test_training_starts_at_the_table_and_leaves_it_where_nothing_moves(kind, bits, groups):
    codes = codes_of(kind, bits, groups)
    trained = TrainedRows(TensorPlan(name="w", role=Role.TABLE, rows=codes, reason="chosen"), CPU)
    assert trained.decoded().detach().numpy() == pytest.approx(codes.decode(), rel=1e-5, abs=1e-5)
    found = trained.planned()
    assert np.array_equal(found.rows.decode(), codes.decode())
    assert found.reason == "chosen; trained"


@pytest.mark.parametrize(("kind", "bits", "groups"), CASES)
def test_the_plan_stores_what_was_trained(kind, bits, groups):
    codes = codes_of(kind, bits, groups)
    trained = TrainedRows(TensorPlan(name="w", role=Role.TABLE, rows=codes), CPU)
    with torch.no_grad():
        for leaf in trained.leaves():
            leaf += 0.1 * torch.randn(leaf.shape, generator=torch.Generator().manual_seed(1))
    found = trained.planned().rows
    assert not np.allclose(found.decode(), codes.decode(), atol=1e-2)
    rounding = 3e-3 * float(np.abs(found.decode()).max())  # of scales to float16
    assert trained.decoded().detach().numpy() == pytest.approx(found.decode(), abs=rounding)
    assert all(np.array_equal(a, b) for a, b in zip(found.planes, codes.planes, strict=True))
    if found.kind is RowKind.PRODUCT:
        assert not found.tables[1:, 0].any(), "a row without a plane would get something from it"


def test_a_table_without_rows_is_refused():
    with pytest.raises(QCompileError, match="without rows"):
        TrainedRows(TensorPlan(name="w", role=Role.TABLE), CPU)


def test_the_simulation_reads_the_rows_that_the_lowered_graph_decodes():
    state = planned(sentence_net(), {"w": made_codes(RowKind.PRODUCT, MIXED)})
    executor, feeds = TorchExecutor(state.model), sentence_data()[0]
    (wanted,) = outputs(run_passes(state, context("x86", sentence_data()), "pack-embeddings").model, feeds)
    given = {name: torch.tensor(array) for name, array in feeds.items()}
    found = executor.run(given, binding=binding_of(state, executor))["y"].numpy()
    assert found == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    assert found != pytest.approx(outputs(state.model, feeds)[0], rel=1e-2, abs=1e-2)


def test_fine_tuning_brings_a_table_of_few_bits_nearer_to_the_float_model():
    where = context("x86", sentence_data(count=48))
    where = replace(
        where, acceptance=sentence_data(seed=9, count=16), recipe=replace(where.recipe, embedding_bits=(1, 1))
    )
    state = run_passes(start(sentence_net()), where, "place", "embedding-bits", "scale-weights")
    state = replace(state, facts=state.facts | {Fact.RANGES})
    result = make_pass("fine-tune{steps=80,rate=0.02,augment=false}").run(state, where)
    before, after = state.plan.tensors["w"].rows, result.state.plan.tensors["w"].rows
    assert result.report.changed
    assert not np.array_equal(before.tables, after.tables)
    assert np.array_equal(before.planes[0], after.planes[0])
    setup = prepare_search(state, where)
    distances = [held_out_distance(setup, binding_of(s, setup.executor)) for s in (state, result.state)]
    assert distances[1] < 0.9 * distances[0]


# -- tokens ------------------------------------------------------------------------------------------


def scheduled(proto, data, options=""):
    state = start(proto)
    where = replace(context("x86", data), acceptance=data)
    setup = prepare_search(state, where)
    return make_pass(f"fine-tune{options}")._schedule(_defaults(setup, state.plan), setup, seed=0, steps=300)


def test_sentences_are_trained_on_in_larger_batches_than_images():
    tokens, images = scheduled(sentence_net(), sentence_data()), scheduled(conv_net(), samples(start(conv_net()).model))
    assert (tokens.batch_rows, tokens.half) == (64, True)
    assert (images.batch_rows, images.half) == (16, False)
    asked = scheduled(sentence_net(), sentence_data(), "{rows=5,rate=0.5,features=0.0}")
    assert (asked.batch_rows, asked.learning_rate, asked.feature_weight) == (5, 0.5, 0.0)


def test_half_precision_is_that_of_products_alone():
    state = planned(sentence_net(), {"w": made_codes(RowKind.PRODUCT, MIXED)})
    executor, data = TorchExecutor(state.model), sentence_data(count=32)
    rows = {"ids": torch.tensor(np.concatenate([data[i]["ids"] for i in range(32)]))}
    trained = {}
    for half in (False, True):
        compressor = LevelCompressor(state, executor, train_tables=True)
        schedule = Schedule(steps=30, batch_rows=16, learning_rate=0.01, half=half)
        task = Task(samples=rows, outputs=("y",), base=binding_of(state, executor), schedule=schedule)
        record = fine_tune(executor, compressor, 1, task)
        assert record.losses[-1] < record.losses[0]
        assert all(leaf.dtype is torch.float32 for leaf in compressor.leaves())
        trained[half] = record
    assert trained[True].losses == pytest.approx(trained[False].losses, rel=0.05)
    assert trained[True].options["half precision"] == "true"
