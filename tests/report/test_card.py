"""The quantization card: 27 fields, each read from what happened, none empty in any run."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from qcompiler.plan import CompressionPlan, NodePlan, Precision, QuantSpec, Role, TensorPlan
from qcompiler.recipe import MatchRule, Recipe
from qcompiler.records import Metric, PassReport
from qcompiler.report.card import CARD_FIELDS, CARD_GROUPS, CardInputs, quantization_card
from qcompiler.report.plan_facts import PlanFacts
from tests.report.builder import failed_report, make_report, unverified_report

S8 = QuantSpec(num_bits=8, signed=True, symmetric=True, axis=0)


def node(name: str, op_type: str, precision: Precision, reason: str = "") -> NodePlan:
    return NodePlan(name=name, op_type=op_type, precision=precision, reason=reason, decided_by=("place",))


def inputs(plan: CompressionPlan | None = None, **changes) -> CardInputs:
    report = make_report()
    made = CardInputs(
        recipe=Recipe(targets=("x86",)),
        target="x86",
        plan=plan or CompressionPlan(target="x86"),
        model=report.model,
        data=report.data,
        passes=report.passes,
        verdict=report.verdict,
    )
    return dataclasses.replace(made, **changes)


def card(plan: CompressionPlan | None = None, **changes) -> dict[str, str]:
    return quantization_card(inputs(plan, **changes))


def test_there_are_27_fields_in_groups():
    assert len(CARD_FIELDS) == len(set(CARD_FIELDS)) == 27
    assert sum(map(len, CARD_GROUPS.values())) == 27


WEIGHT_ONLY = (
    CompressionPlan(target="x86")
    .with_nodes(node("m", "MatMul", Precision.WEIGHT_ONLY, "no range"))
    .with_tensors(TensorPlan(name="w", role=Role.WEIGHT, spec=S8, scale=np.ones(3, np.float32)))
)
EVERY_RUN = {
    "nothing planned": inputs(),
    "weights only": inputs(WEIGHT_ONLY),
    "no data": inputs(data=None, verdict=unverified_report().verdict),
    "failed": inputs(verdict=failed_report().verdict),
    "nothing ran": inputs(passes=(), data=None, verdict=failed_report().verdict),
    "replayed": inputs(recipe=Recipe(replay="old.qcompile")),
    "no search": inputs(recipe=Recipe(effort=0)),
    "unlabeled": inputs(data=dataclasses.replace(make_report().data, labels="", preprocessing="")),
}


@pytest.mark.parametrize("given", EVERY_RUN.values(), ids=EVERY_RUN.keys())
def test_no_field_is_ever_empty(given):
    made = quantization_card(given)
    assert tuple(made) == CARD_FIELDS
    for field, answer in made.items():
        assert len(answer.strip()) > 3, field
        assert answer.endswith("."), (field, answer)
        assert "  " not in answer, (field, answer)


def test_a_field_that_does_not_apply_says_why():
    made = card()
    assert made["Weight bits"] == "Does not apply: no weight is stored in integers."
    assert made["Activation bits"].startswith("Does not apply: no activation has a fixed integer range")
    assert card(data=None)["Labels"] == "Does not apply: no data was given."


def test_widths_granularity_and_symmetry_are_counted_from_the_plan():
    plan = CompressionPlan().with_tensors(
        TensorPlan(name="a", role=Role.WEIGHT, spec=S8, scale=np.ones(16, np.float32)),
        TensorPlan(name="b", role=Role.WEIGHT, spec=dataclasses.replace(S8, num_bits=4), scale=np.ones(8, np.float32)),
        TensorPlan(
            name="c",
            role=Role.WEIGHT,
            spec=dataclasses.replace(S8, axis=None),
            scale=np.float32(1).reshape(()),
        ),
        TensorPlan(name="x", role=Role.ACTIVATION, spec=QuantSpec(), clip=(0.0, 6.0)),
        TensorPlan(name="y", role=Role.ACTIVATION, spec=QuantSpec(), clip=(-1.0, 6.0)),
    )
    made = card(plan)
    assert "8 bits signed: 2 tensors; 4 bits signed: 1 tensor" in made["Weight bits"]
    assert "(axis 0): 2 tensors; One scale per tensor: 1 tensor; 25 scales" in made["Weight granularity"]
    assert "codes -127..127: 2 tensors" in made["Weight symmetry"]
    assert "widths 4, 8" in made["Bit assignment"]
    assert "8 bits unsigned: 2 tensors" in made["Activation bits"]
    assert "codes 0..255" in made["Activation symmetry"]


def test_rules_of_the_recipe_are_counted():
    plan = CompressionPlan().with_tensors(TensorPlan(name="a", role=Role.WEIGHT, spec=S8))
    assert "no rule by name" in card(plan)["Bit assignment"]
    rules = (MatchRule(pattern="fc", keep_float=True),)
    assert "1 rule by name" in card(plan, recipe=Recipe(rules=rules))["Bit assignment"]


def test_deciding_passes_are_named_with_their_options():
    plan = CompressionPlan().with_tensors(
        TensorPlan(name="a", role=Role.WEIGHT, spec=S8, decided_by=("place", "scale-weights")),
        TensorPlan(name="x", role=Role.ACTIVATION, spec=QuantSpec(), decided_by=("place", "calibrate")),
    )
    made = card(plan)
    assert "scale-weights (search=True) on 1 tensor" in made["Weight clipping"]
    assert "calibrate (method=mse, bins=2048" in made["Activation observer"]


def test_corrections_and_searched_codes_are_counted():
    bias = TensorPlan(name="b", role=Role.BIAS, correction=np.ones(2, np.float32), decided_by=("correct-bias",))
    codes = TensorPlan(name="a", role=Role.WEIGHT, spec=S8, codes=np.ones((2, 2), np.int8))
    made = card(CompressionPlan().with_tensors(bias, codes))
    assert made["Weight bias and variance correction"].startswith("Mean: 1 bias with a correction, by correct-bias")
    assert "1 tensor with codes chosen by a search" in made["Weight clipping"]
    assert "codes of 1 tensor" in made["Fine-tuning"]
    without = card(recipe=Recipe(skip_passes=("correct-bias",)))["Weight bias and variance correction"]
    assert "correct-bias was switched off" in without


def test_training_is_stated_where_there_was_some():
    plan = CompressionPlan().with_tensors(TensorPlan(name="a", role=Role.WEIGHT, spec=S8))
    trained = PassReport(name="fine-tune", changed=True, options={"steps": 120, "augment": "true"})
    vain = PassReport(name="reconstruct-blocks", changed=False)
    made = card(plan, passes=(trained, vain))
    assert "fine-tune (steps=120, augment=true)" in made["Fine-tuning"]
    assert "the same to train" in made["Number of samples"]
    assert made["Augmentation and data split"].startswith("Floating-point samples are varied in fine-tune.")
    assert "reconstruct" not in made["Fine-tuning"]
    assert "; learned by gradients in fine-tune;" in made["Weight clipping"]
    made = card(plan, passes=(vain,))
    assert made["Fine-tuning"].startswith("None")
    assert "0 to train" in made["Number of samples"]
    assert made["Augmentation and data split"].startswith("No augmentation.")
    assert "not learned by gradients" in made["Weight clipping"]


def test_first_and_last_layer_follow_the_graph_order():
    plan = CompressionPlan().with_nodes(
        node("a", "Conv", Precision.INTEGER),
        node("r", "Relu", Precision.INTEGER),
        node("z", "Gemm", Precision.FLOAT, "kept in float"),
    )
    assert "First (Conv 'a' runs in integers); last (Gemm 'z' runs in float)" in card(plan)["First and last layer"]
    turned = card(plan, order=("z", "r", "a"))["First and last layer"]
    assert "First (Gemm 'z' runs in float); last (Conv 'a'" in turned


def test_nodes_left_in_float_carry_their_reason():
    plan = CompressionPlan().with_nodes(
        node("a", "Conv", Precision.INTEGER), node("z", "Gemm", Precision.FLOAT, "transposed input")
    )
    answer = card(plan)["Shortcut and downsample layers"]
    assert "1 in integers, 1 in float" in answer
    assert "1 node (transposed input 1)" in answer


def test_operators_are_grouped_by_how_they_run():
    plan = CompressionPlan().with_nodes(
        node("a", "Softmax", Precision.FLOAT),
        node("b", "MaxPool", Precision.MOVE),
        node("c", "Add", Precision.INTEGER),
        node("d", "Add", Precision.FLOAT),
    )
    answer = card(plan)["Operators beside matrix products"]
    assert answer == "In integers: Add 1; moving codes: MaxPool 1; in float: Softmax 1, Add 1."


def test_dynamic_nodes_are_stated():
    plan = CompressionPlan().with_nodes(node("a", "MatMul", Precision.DYNAMIC))
    assert "1 node: 8 bits, range found per run" in card(plan)["Activation bits"]


def test_batch_norm_answer_follows_the_pass_list():
    assert card(passes=())["BatchNorm folding"].startswith("Not folded: no such pass ran.")
    folded = PassReport(
        name="fold-batch-norm",
        changed=True,
        metrics=(Metric("folded", 20, "nodes"), Metric("spent", 3, "ms")),
    )
    answer = card(passes=(folded,))["BatchNorm folding"]
    assert "folded (folded 20 nodes)" in answer
    assert "ms" not in answer


def test_execution_is_read_from_the_runtime():
    answer = card()["Integer execution"]
    assert "16 of 19 compute nodes run in integers" in answer
    assert "QLinearConv 16" in answer
    assert card(verdict=failed_report().verdict)["Integer execution"].startswith(
        "Not read: ONNX Runtime could not load"
    )


def test_no_answer_holds_a_time_so_that_the_card_is_the_same_in_every_run():
    report = make_report()
    latency = dataclasses.replace(report.verdict.latency, ratio_min=0.9)
    floor = dataclasses.replace(report.verdict.floors[-1], reached=0.9)
    slower = dataclasses.replace(
        report.verdict, latency=latency, floors=(floor,), memory_bytes={"original": 1, "result": 2}
    )
    passes = tuple(dataclasses.replace(p, seconds=99.0) for p in report.passes)
    assert card(verdict=slower, passes=passes) == card()


def test_levels_of_few_bits_are_counted_and_their_ends_named():
    few = dataclasses.replace(S8, num_bits=2)
    tables = {"a": [-2, -1, 0, 1], "b": [-3, -1, 1, 3], "c": [-3, -1, 1, 3]}
    weights = [
        TensorPlan(name=n, role=Role.WEIGHT, spec=few, levels=np.asarray(levels, np.int8))
        for n, levels in tables.items()
    ]
    facts = PlanFacts(CompressionPlan().with_tensors(*weights), (), Recipe())
    expected = "Symmetric, 4 levels -3..3: 2 tensors; Asymmetric, 4 levels -2..1: 1 tensor."
    assert facts.weight_symmetry() == expected


def test_tables_fitted_to_every_tensor_are_one_line():
    few = dataclasses.replace(S8, num_bits=2)
    tables = ([-63, -9, 8, 63], [-62, -8, 9, 60], [-47, 1, 2, 63])
    weights = [
        TensorPlan(name=str(i), role=Role.WEIGHT, spec=few, levels=np.asarray(levels, np.int8))
        for i, levels in enumerate(tables)
    ]
    facts = PlanFacts(CompressionPlan().with_tensors(*weights), (), Recipe())
    assert facts.weight_symmetry() == "Asymmetric, 4 levels within -63..63: 3 tensors."


def test_the_card_says_what_the_bytes_are():
    card = dict(make_report().card)
    assert any("The model's bytes: weights below 8 bits 1.15 MB, graph 100 kB" in text for text in card.values())


def test_a_chosen_average_is_stated_with_who_chose_it():
    weights = [
        TensorPlan(name=name, role=Role.WEIGHT, spec=QuantSpec(num_bits=bits), decided_by=("place", "allocate-bits"))
        for name, bits in (("a", 3), ("b", 5))
    ]
    plan = CompressionPlan().with_tensors(*weights)
    chosen = PlanFacts(plan, (), Recipe(), mean_bits=3.984).bit_assignment()
    assert "widths 3, 5, chosen by allocate-bits; 3.98 bits on average" in chosen
    assert "no average is stated" in PlanFacts(plan, (), Recipe()).bit_assignment()
