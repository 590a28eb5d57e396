from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")


from qcompiler.budget import Budget, Checkpoint  # noqa: E402
from qcompiler.errors import ModelError  # noqa: E402
from qcompiler.executor.binding import EMPTY, binding_of  # noqa: E402
from qcompiler.executor.setup import prepare_search  # noqa: E402
from qcompiler.training.blocks import Streams, blocks_of, work_of  # noqa: E402
from qcompiler.training.reconstruction import AS_IT_WAS, WAYS, BlockSchedule, BlockTrainer, out_of_memory  # noqa: E402
from qcompiler.training.walk import VISITS, BlockWalk, WalkOptions, joint_steps  # noqa: E402
from qcompiler.training.weights import StraightThrough  # noqa: E402
from tests.compiling import samples, start  # noqa: E402
from tests.models import conv_net  # noqa: E402
from tests.passes.states import plan_bytes  # noqa: E402
from tests.training.lowbits import low_bit_state  # noqa: E402


@pytest.fixture(scope="module")
def case():
    proto = conv_net(channels=8)
    state, where = low_bit_state(proto, 2, samples(start(proto).model, count=16))
    setup = prepare_search(state, where)
    assert not isinstance(setup, str), setup
    return state, where, setup


def streams_at(setup, number):
    """Return a block and the rows of both models before it, which are the same."""
    blocks = blocks_of(setup.executor, setup.loss.outputs, setup.axes)
    stream = Streams(setup.executor, setup.axes, setup.samples, setup.loss.outputs, 8)
    for block in blocks[:number]:
        stream.enter(block)
        stream.leave(block, EMPTY)
    stream.enter(blocks[number])
    return blocks[number], stream


def trainer(case, number=0, **schedule):
    state, _, setup = case
    block, stream = streams_at(setup, number)
    return BlockTrainer(
        executor=setup.executor,
        state=state,
        base=binding_of(state, setup.executor),
        block=block,
        train=stream,
        held=stream,
        classes=setup.loss.classes,
        schedule=BlockSchedule(**{"steps": 10, "batch_rows": 8, **schedule}),
    )


def walk(case, ways=("straight-through", "flexround"), **options):
    _state, where, setup = case
    schedule = BlockSchedule(**{"steps": 4, "batch_rows": 8, **options})
    return BlockWalk(setup, where, WalkOptions(schedule=schedule, ways=ways))


def test_blocks_cover_the_model_and_both_streams_end_at_its_outputs(case):
    state, _, setup = case
    executor = setup.executor
    blocks = blocks_of(executor, setup.loss.outputs, setup.axes)
    assert blocks[0].start == 0
    assert all(a.stop == b.start for a, b in itertools.pairwise(blocks))
    assert blocks[-1].outputs == setup.loss.outputs
    assert len(blocks) > 1
    stream = Streams(executor, setup.axes, setup.samples, setup.loss.outputs, 5)
    base = binding_of(state, executor)
    for block in blocks:
        stream.enter(block)
        stream.leave(block, base)
    wanted = executor.run(setup.samples, setup.loss.outputs)
    found = executor.run(setup.samples, setup.loss.outputs, binding=base)
    for name in setup.loss.outputs:
        torch.testing.assert_close(stream.exact[name], wanted[name], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(stream.found[name], found[name], rtol=1e-4, atol=1e-5)


def test_a_block_has_as_many_layers_as_asked_for_but_at_the_end(case):
    _, _, setup = case
    executor, wanted = setup.executor, setup.loss.outputs
    small, large = (blocks_of(executor, wanted, setup.axes, n) for n in (1, 4))
    assert len(small) > len(large) == 1
    assert (large[0].start, large[0].stop) == (small[0].start, small[-1].stop)
    assert large[0].nodes == frozenset().union(*(b.nodes for b in small))


def test_a_way_may_be_slower(case, monkeypatch):
    rates = []
    monkeypatch.setattr(BlockTrainer, "_train", lambda self, compressor, rate: rates.append(rate) or 2)
    trainer(case, steps=2, rate=0.04).contest(("straight-through", "straight-through/8"))
    assert rates == [0.04, 0.005]


def test_the_work_of_a_block_is_that_of_its_products(case):
    _, _, setup = case
    blocks = blocks_of(setup.executor, setup.loss.outputs, setup.axes)
    works = work_of(setup.executor, blocks, {n: v[:1] for n, v in setup.samples.items()})
    products = 16 * 16 * 8 * (3 * 9 + 9 + 8) + 8 * 5
    assert sum(works) > products
    assert works[0] > works[-1]


@pytest.mark.parametrize("way", WAYS)
def test_training_a_block_brings_it_nearer(case, way):
    found = trainer(case, number=2, steps=30, rate=0.05)
    before = found.error(found.base)
    compressor, steps = found.trained(WAYS[way])
    assert steps == 30
    assert found.error(compressor.compressed(found.base)) < 0.9 * before


def test_the_error_without_compression_is_nothing(case):
    found = trainer(case)
    assert found.error(EMPTY) == pytest.approx(0, abs=1e-9)
    last = trainer(case, number=len(blocks_of(case[2].executor, case[2].loss.outputs, case[2].axes)) - 1)
    assert last.block.outputs == case[2].loss.outputs
    assert last.error(EMPTY) == pytest.approx(0, abs=1e-6)


def test_the_least_error_on_held_out_rows_wins(case, monkeypatch):
    found = trainer(case, steps=2)
    errors = iter([5.0, 4.0, 3.0, 6.0])
    monkeypatch.setattr(BlockTrainer, "error", lambda self, binding: next(errors))
    contest = found.contest(tuple(WAYS))
    assert contest.winner == "flexround"
    assert contest.errors == {AS_IT_WAS: 5.0, "straight-through": 4.0, "flexround": 3.0, "soft-bit": 6.0}
    assert contest.complete
    assert contest.steps == 6


def test_a_block_stays_as_it_was_where_nothing_helps(case, monkeypatch):
    found = trainer(case, steps=2)
    errors = iter([1.0, 1.0, 2.0])
    monkeypatch.setattr(BlockTrainer, "error", lambda self, binding: next(errors))
    contest = found.contest(("straight-through", "flexround"))
    assert contest.winner == AS_IT_WAS
    assert contest.plan is found.state.plan


def test_inputs_are_drawn_from_both_models(case):
    found = trainer(case, drop=0.5)
    name = found.block.inputs[0]
    found.train.found = {name: torch.zeros_like(found.train.found[name])}
    found.train.exact = {name: torch.ones_like(found.train.found[name])}
    rows = torch.arange(8)
    share = float(found._inputs(rows, torch.Generator().manual_seed(0))[name].mean())
    assert 0.4 < share < 0.6
    found.schedule = replace(found.schedule, drop=0.0)
    assert float(found._inputs(rows, torch.Generator())[name].sum()) == 0


def test_out_of_memory_halves_the_mini_batch_and_says_so(case, monkeypatch):
    found = trainer(case, steps=2, batch_rows=8)
    real = BlockTrainer._run

    def scarce(self, feeds, binding):
        if next(iter(feeds.values())).shape[0] > 2:
            try:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
            except RuntimeError as error:
                raise ModelError("a node does not run") from error
        return real(self, feeds, binding)

    monkeypatch.setattr(BlockTrainer, "_run", scarce)
    _, steps = found.trained(StraightThrough)
    assert steps == 2
    assert found.schedule.batch_rows == 2
    assert [note.rsplit("to ", 1)[1] for note in found.notes] == ["4 rows", "2 rows"]


def test_other_errors_are_no_lack_of_memory(case, monkeypatch):
    assert out_of_memory(MemoryError())
    assert not out_of_memory(RuntimeError("shapes differ"))

    def broken(self, feeds, binding):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(BlockTrainer, "_run", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        trainer(case).trained(StraightThrough)


def test_the_walk_tells_the_contest_of_every_block_and_ends_with_what_won(case):
    state, _, setup = case
    found = walk(case)
    after = found.run(state)
    blocks = blocks_of(setup.executor, setup.loss.outputs, setup.axes)
    assert [r.block for r in found.records] == [b.name for b in blocks]
    for record in found.records:
        assert record.errors[record.winner] == min(record.errors.values())
        assert record.steps == 8
    assert after.plan is not state.plan
    changed = [t for k, t in after.plan.tensors.items() if t is not state.plan.tensors.get(k)]
    assert all("reconstructed, " in t.reason for t in changed)


def test_a_stopped_walk_resumes_with_the_same_bytes(case, tmp_path, monkeypatch):
    state, where, setup = case
    whole = plan_bytes(walk(case).run(state).plan)
    kept = replace(where, checkpoint=Checkpoint(tmp_path / "kept", lambda: "a search"))
    contests = []
    real = BlockTrainer.contest

    def counted(self, ways):
        contests.append(self.block.name)
        if len(contests) == 2:
            kept.budget.stop()
        return real(self, ways)

    monkeypatch.setattr(BlockTrainer, "contest", counted)
    stopped = walk((state, kept, setup))
    stopped.run(state)
    assert len(contests) == 2
    assert "interrupted" in stopped.notes[-1]
    again = walk((state, replace(kept, budget=Budget()), setup))
    assert plan_bytes(again.run(state).plan) == whole
    assert contests[1:3] == [contests[1]] * 2, "the block that was cut short is done again, the one before is not"
    assert kept.checkpoint.log.reused == 1


def test_little_time_means_few_steps_and_little_memory_few_rows(case):
    state, where, setup = case
    hurried = walk((state, replace(where, budget=Budget(seconds=1e-3)), setup), steps=1000)
    hurried.run(state)
    assert sum(r.steps for r in hurried.records) < 100
    narrow = walk((state, replace(where, budget=_Scarce()), setup))
    narrow.run(state)
    assert "to save memory" in narrow.notes[0]


class _Scarce(Budget):
    """Allows only what fewer rows take."""

    def allows(self, more_bytes: int) -> bool:
        return more_bytes < 16 * 4 * 8 * 16 * 16


def test_steps_follow_from_the_work(case):
    _, _, setup = case
    blocks = blocks_of(setup.executor, setup.loss.outputs, setup.axes)
    works = work_of(setup.executor, blocks, {n: v[:1] for n, v in setup.samples.items()})
    found = walk(case, steps=0)
    found.options = replace(found.options, work=50 * 3.5 * 8 * 2 * sum(works) * 1.001)
    assert found._schedule(0, works, 12, 0.0).steps == 50
    found.options = replace(found.options, work=1e30)
    assert found._schedule(0, works, 12, 0.0).steps == VISITS * 12 // 8
    assert joint_steps(setup, 1e30, 8) == VISITS * 16 // 8
    assert joint_steps(setup, 50 * 4 * 8 * sum(works) * 1.001, 8) == 50
    assert joint_steps(setup, 1.0, 8) == 0


def test_rows_that_decide_are_not_trained_on(case):
    _, _, setup = case
    found = walk(case)
    train, held = found._split(setup.axes)
    name = next(iter(train))
    assert (len(train[name]), len(held[name])) == (12, 4)
    together = torch.cat([train[name], held[name]]).reshape(16, -1)
    assert len({row.numpy().tobytes() for row in together}) == 16
    found.options = replace(found.options, copies=3)
    copied, same = found._split(setup.axes)
    assert len(copied[name]) == 36
    assert torch.equal(copied[name][:12], train[name])
    assert not torch.equal(copied[name][12:24], train[name])
    assert torch.equal(same[name], held[name])
