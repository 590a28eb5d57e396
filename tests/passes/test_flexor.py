"""Weights of a fraction of a bit: which code words are planned, and that a session holds what was planned."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest

from qcompiler.codec.xor_weights import XorRate
from qcompiler.decoding import differing_constant
from qcompiler.errors import UsageError
from qcompiler.model.save import save_model
from qcompiler.plan import CompressionPlan, Role
from qcompiler.recipe import MatchRule
from qcompiler.registry import make_pass
from qcompiler.runtime.storage import PACKED, SPARSE, WHOLE, stored_bytes
from tests.compiling import PLANNING, lowered, outputs, planned, run_passes, runtime_ops, samples, serialized
from tests.models import token_net
from tests.passes.test_pack_bits import conv_and_gemm

PASSES = (*PLANNING[:-1], "flexor", PLANNING[-1])


def coded(proto=None, bits="W0.8A8", **options):
    return planned(conv_and_gemm() if proto is None else proto, passes=PASSES, bits=bits, **options)


def before_words(bits):
    """Return a state whose words are still to be chosen, with samples that tell all inputs apart."""
    proto = conv_and_gemm()
    many = samples(planned(proto)[0].model, count=400)
    return planned(proto, passes=PLANNING[:-1], bits=bits, data=many)


def without(state, where, *left_out):
    return run_passes(state, where, *(n for n in where.target.lower_passes() if n not in left_out)).model


# -- planning ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", ["W0.8A8", "W0.6A8", "W.5A8"])
def test_every_weight_is_made_of_code_words(bits):
    state, where = coded(bits=bits)
    rate = XorRate.of_bits(where.recipe.xor_bits)
    weights = [t for t in state.plan.tensors.values() if t.role is Role.WEIGHT]
    assert len(weights) == 2
    for entry in weights:
        assert entry.encoding == rate.name
        assert entry.spec.num_bits == 1
        assert rate.stored_bits((entry.codes == entry.levels[1]).reshape(-1).astype(np.uint8)) is not None
        assert "flexor" in entry.decided_by


def test_the_words_are_better_than_the_nearest():
    state, where = before_words("W0.8A8")
    report = make_pass("flexor").run(state, where).report
    for row in report.tables[0].rows:
        _, nearest, best = row.values
        assert nearest + 0.05 < best
    assert next(m.value for m in report.metrics if m.name == "stored bits") == 0.8


def test_more_stored_bits_are_better():
    levels = []
    for bits in ("W0.4A8", "W0.6A8", "W0.8A8", "W1.0A8"):
        state, where = before_words(bits)
        rows = make_pass("flexor").run(state, where).report.tables[0].rows
        levels.append(sum(row.values[2] for row in rows))
    assert levels == sorted(levels)


def test_weights_to_which_a_rule_gives_other_bits_keep_them():
    state, _ = coded(rules=[MatchRule(pattern="^fc$", num_bits=8)])
    assert state.plan.tensors["w"].encoding == "xor 12/15"
    assert state.plan.tensors["v"].encoding is None
    assert state.plan.tensors["v"].spec.num_bits == 8


def test_without_a_fraction_of_a_bit_nothing_is_done():
    state, where = planned(conv_and_gemm(), bits="W1A8")
    assert not make_pass("flexor").run(state, where).report.changed
    asked = replace(make_pass("flexor"), bits=1.0).run(state, where)
    assert asked.state.plan.tensors["w"].encoding == "xor 12/12"


def test_without_samples_the_weights_alone_decide():
    proto = conv_and_gemm()
    state, where = planned(proto, passes=PLANNING[:-1], bits="W0.8A8")
    result = make_pass("flexor").run(state, replace(where, calibration=None))
    assert {s.tensor for s in result.report.skipped} == {"w", "v"}
    assert all("there are no samples" in s.reason for s in result.report.skipped)
    entry = result.state.plan.tensors["v"]
    weight = next(v for v in state.model.graph.initializers.values() if v.name == "v").const_value.numpy()
    left = np.square(weight - entry.codes * entry.scale[:, None]).sum() / np.square(weight).sum()
    assert 0.38 < left < 0.45


def test_a_rate_that_there_is_not_is_refused():
    with pytest.raises(UsageError, match=r"bits is 2; it must be 0\.1 to 1"):
        replace(make_pass("flexor"), bits=2.0)


# -- lowering ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", ["W0.8A8", "W0.6A8", "W0.4A8"])
@pytest.mark.parametrize("odd", [False, True])
def test_the_runtime_runs_the_same_kernels_on_the_same_weights(bits, odd):
    state, where = coded(conv_and_gemm(odd=odd), bits=bits)
    packed, plain = lowered(state, where).model, without(state, where, "pack-xor", "pack-bits")
    assert Counter(runtime_ops(packed)) == Counter(runtime_ops(plain))
    for feeds in samples(state.model, 3, seed=5).samples:
        assert np.array_equal(outputs(packed, feeds), outputs(plain, feeds))
        assert np.array_equal(outputs(packed, feeds, optimize=False), outputs(plain, feeds, optimize=False))


@pytest.mark.parametrize("opset", [11, 12, 13, 17])
def test_every_opset_splits_its_way(opset):
    proto = conv_and_gemm()
    proto.opset_import[0].version = opset
    state, where = coded(proto)
    packed, plain = lowered(state, where).model, without(state, where, "pack-xor", "pack-bits")
    split = next(n for n in packed.graph if n.op_type == "Split")
    assert len(split.inputs) == (1 if opset < 13 else 2)
    feeds = samples(state.model)[0]
    assert np.array_equal(outputs(packed, feeds), outputs(plain, feeds))
    assert Counter(runtime_ops(packed)) == Counter(runtime_ops(plain))


def test_products_of_float_activations():
    proto = token_net(words=200)
    state, where = coded(proto, data=samples(planned(proto)[0].model, free=3))
    packed, plain = lowered(state, where).model, without(state, where, "pack-xor", "pack-bits")
    assert any(t.encoding for t in state.plan.tensors.values())
    for feeds in samples(state.model, 3, seed=3, free=3).samples:
        for first, second in zip(outputs(packed, feeds), outputs(plain, feeds), strict=True):
            assert np.array_equal(first, second)


@pytest.mark.parametrize("bits", ["W0.8A8", "W0.6A8"])
def test_the_file_holds_the_stored_bits(tmp_path, bits):
    state, where = coded(bits=bits)
    files = save_model(lowered(state, where).model, tmp_path / "model.onnx")
    found = stored_bytes(files[0], files[0].stat().st_size)
    rate = XorRate.of_bits(where.recipe.xor_bits)
    streams = sum(3 * -(-t.codes.size // (2 * rate.outputs)) for t in state.plan.tensors.values() if t.encoding)
    connections, levels = 3 * 2 * rate.outputs, {t.levels.tobytes() for t in state.plan.tensors.values() if t.encoding}
    assert found[PACKED] == streams + connections + 2 * len(levels)
    assert WHOLE not in found
    assert SPARSE not in found


def test_it_takes_fewer_bytes_than_a_whole_bit():
    rules = [MatchRule(pattern="^fc$", num_bits=8)]
    sizes = [len(serialized(lowered(*coded(bits=b, rules=rules)).model)) for b in ("W1A8", "W0.8A8", "W0.4A8")]
    assert sizes[2] < sizes[1]


def test_codes_that_are_no_words_are_stored_bit_by_bit():
    state, where = coded()
    entry = state.plan.tensors["w"]
    codes = entry.codes.copy().reshape(-1)
    codes[14] = entry.levels[0] + entry.levels[1] - codes[14]  # a sum of others
    state = replace(state, plan=state.plan.with_tensors(replace(entry, codes=codes.reshape(entry.codes.shape))))
    before = run_passes(state, where, "insert-qdq")
    result = make_pass("pack-xor").run(before, where)
    assert [(s.tensor, s.reason) for s in result.report.skipped] == [
        ("w", "stored bit by bit: its codes are not of 'xor 12/15'")
    ]
    packed, plain = lowered(state, where).model, without(state, where, "pack-xor", "pack-bits")
    feeds = samples(state.model)[0]
    assert np.array_equal(outputs(packed, feeds), outputs(plain, feeds))


def test_old_operators_cannot_decode():
    state, where = coded()
    before = run_passes(state, where, "insert-qdq")
    before.model.opset_imports[""] = 10
    result = make_pass("pack-xor").run(before, where)
    assert not result.report.changed
    assert {s.reason for s in result.report.skipped} == {"needs opset 11 or newer"}


def test_a_saved_plan_is_lowered_to_the_same_bytes(tmp_path):
    state, where = coded()
    state.plan.save(tmp_path)
    again = replace(state, plan=CompressionPlan.load(tmp_path))
    assert serialized(lowered(again, where).model) == serialized(lowered(state, where).model)


def test_one_stream_and_one_split_for_all_weights():
    state, where = coded()
    model: onnx.ModelProto = onnx.load_from_string(serialized(lowered(state, where).model))
    ops = Counter(node.op_type for node in model.graph.node)
    assert ops["Split"] == 1
    assert ops["Xor"] == 2


def test_what_was_written_is_held_against_the_plan():
    """The checks of the pipeline decode the stream again, whichever way Split is told its lengths."""
    for opset in (12, 17):
        proto = conv_and_gemm()
        proto.opset_import[0].version = opset
        state, where = coded(proto)
        model = lowered(state, where).model
        assert differing_constant(state.model, model, state.plan) == ""
        entry = state.plan.tensors["w"]
        other = replace(entry, codes=entry.codes[::-1].copy())
        wrong = differing_constant(state.model, model, state.plan.with_tensors(other))
        assert "'w'" in wrong
