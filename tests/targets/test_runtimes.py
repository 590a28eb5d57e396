"""What every target promises, whatever its runtime; and what the tables that are no targets refuse."""

import pytest

from qcompiler.artifacts import WRITERS
from qcompiler.errors import RuntimeUnavailable, UsageError
from qcompiler.passes import PASSES
from qcompiler.plan import Precision, QuantSpec
from qcompiler.protocols import OpRule, Refusal, Target
from qcompiler.registry import load_target
from qcompiler.runtime import available
from qcompiler.runtime.available import RUNTIMES, runtime_of
from qcompiler.targets import TARGETS
from tests.compiling import planned
from tests.models import conv_net
from tests.targets.operators import OPERATOR, around

TABLES = {"tensorrt", "nnapi"}


@pytest.fixture(params=sorted(TARGETS))
def target(request):
    return load_target(request.param)


def test_it_is_a_target(target):
    assert isinstance(target, Target)
    assert target.full_name.split(":")[0] == target.name
    assert target.runtime_name in RUNTIMES or target.name in TABLES
    assert set(target.lower_passes()) <= set(PASSES)
    assert set(target.artifacts()) <= set(WRITERS)


def test_a_table_alone_writes_nothing(target):
    assert (target.runtime_name == "") == (target.lower_passes() == ()) == (target.name in TABLES)
    assert not (target.runtime_name == "" and (target.executes_here or target.artifacts()))


def test_every_row_is_found_by_the_question_it_answers(target):
    for rule in target.rules():
        for weights in rule.weights or (None,):
            assert isinstance(target.legalize(rule.op_type, rule.precision, weights), OpRule), rule


def test_what_is_in_no_row_is_refused_with_a_reason(target):
    for op_type in ("Softmax", "Einsum", "Gelu"):
        found = target.legalize(op_type, Precision.INTEGER, None)
        assert isinstance(found, Refusal)
        assert found.reason
    found = target.legalize("Conv", Precision.INTEGER, QuantSpec(num_bits=8, signed=False))
    assert isinstance(found, Refusal)


def test_it_places_every_operator_of_its_table(target):
    for rule in target.rules():
        if rule.precision is Precision.DYNAMIC or target.name in TABLES:
            continue
        state, _ = planned(around(rule.op_type), target=target.name, passes=("place",))
        assert state.plan.nodes[OPERATOR].precision in (Precision.INTEGER, Precision.MOVE), rule


def test_signed_activations_are_for_tables_only(target):
    signed = any(grid.signed for rule in target.rules() for grid in rule.activations)
    assert signed == (target.name == "tensorrt")


@pytest.mark.parametrize("name", ["openvino", "qnn"])
def test_a_missing_runtime_says_what_to_install(monkeypatch, name):
    monkeypatch.setattr(available.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(RuntimeUnavailable, match=f"^target '{name}' needs .*: pip install {RUNTIMES[name].package}$"):
        runtime_of(load_target(name))


def test_a_missing_runtime_is_told_before_any_work(monkeypatch, tmp_path):
    from qcompiler.compiler import compile_model
    from qcompiler.recipe import Recipe

    monkeypatch.setattr(available.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(RuntimeUnavailable, match="pip install openvino"):
        compile_model(tmp_path / "absent.onnx", recipe=Recipe(targets=("openvino",)), out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_fine_tuning_without_pytorch_is_told_before_any_work(monkeypatch):
    from qcompiler.recipe import Recipe

    found = available.importlib.util.find_spec
    monkeypatch.setattr(available.importlib.util, "find_spec", lambda m: None if m == "torch" else found(m))
    available.check_target(load_target("x86"), Recipe())
    with pytest.raises(RuntimeUnavailable, match=r'^--fine-tune needs PyTorch: pip install "qcompiler\[torch\]"$'):
        available.check_target(load_target("x86"), Recipe(fine_tune_minutes=1.0))


@pytest.mark.parametrize("name", sorted(TABLES))
def test_nothing_is_compiled_for_a_table(name, tmp_path):
    from qcompiler.compiler import compile_model
    from qcompiler.recipe import Recipe

    model = tmp_path / "m.onnx"
    model.write_bytes(conv_net().SerializeToString())
    with pytest.raises(UsageError, match=f"only a table.*qcompile lint MODEL --target {name}"):
        compile_model(model, recipe=Recipe(targets=(name,)), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "op_type", "word"),
    [
        ("tensorrt", "Softmax", "TensorRT"),
        ("nnapi", "Sigmoid", "NNAPI"),
        ("openvino", "Mul", "OpenVINO"),
        ("qnn", "Softmax", "HTP"),
        ("x86", "Softmax", "slower"),
    ],
)
def test_a_refusal_speaks_of_its_own_runtime(name, op_type, word):
    found = load_target(name).legalize(op_type, Precision.INTEGER, None)
    assert isinstance(found, Refusal)
    assert word in found.reason
