"""Linting: what a table says about a model is what placement would do, node by node, with the target's reason."""

import json
from dataclasses import replace

import pytest

from qcompiler.errors import ModelError, UsageError
from qcompiler.inspection.linting import lint_model
from qcompiler.runtime.ort_cpu import U8
from qcompiler.targets.qnn import Qnn
from tests.compiling import compiled, serialized
from tests.models import conv_net, dense_net, save, token_net
from tests.targets.operators import OPERATOR, around


def test_a_net_of_convolutions_has_nothing_to_complain_about(tmp_path):
    result = lint_model(save(around("Add"), tmp_path), "tensorrt")
    assert result.findings == ()
    assert result.only_a_table
    assert (result.compute_nodes, result.integer_compute_nodes, result.mac_share) == (3, 3, 1.0)


@pytest.mark.parametrize(
    ("target", "operator", "reason"),
    [
        ("tensorrt", "Sigmoid", "no INT8 form"),
        ("nnapi", "LeakyRelu", "in float only"),
        ("openvino", "Mul", "multiplies in float"),
        ("nnapi", "Gemm", "per channel"),
    ],
)
def test_a_finding_has_the_reason_of_the_target(tmp_path, target, operator, reason):
    result = lint_model(save(around(operator), tmp_path), target)
    (finding,) = (f for f in result.findings if f.node == OPERATOR)
    assert reason in finding.reason
    assert "stored" not in finding.reason


def test_open_shapes_leave_the_share_open(tmp_path):
    assert lint_model(save(token_net(), tmp_path), "x86").mac_share is None
    assert lint_model(save(dense_net(), tmp_path), "x86").mac_share == 1.0


def test_every_float_node_is_either_found_or_in_integers(tmp_path):
    result = lint_model(save(conv_net(), tmp_path), "nnapi")
    assert 0 < len(result.findings) < result.nodes
    assert result.integer_compute_nodes < result.compute_nodes


def test_a_quantized_model_is_refused(tmp_path):
    path = tmp_path / "q.onnx"
    path.write_bytes(serialized(compiled(around("Add"))))
    with pytest.raises(ModelError, match="already quantized; lint the float model"):
        lint_model(path, "tensorrt")


def test_the_command_prints_and_counts(run, tmp_path):
    path = save(around("Sigmoid"), tmp_path)
    shown = run("lint", path, "--target", "tensorrt")
    assert shown.code == 0
    assert OPERATOR in shown.out
    assert "not executed here: a table only" in shown.err
    strict = run("lint", path, "--target", "tensorrt", "--strict", "--json")
    assert strict.code == 4
    assert "1 node would stay in float on tensorrt" in strict.err
    assert [f["node"] for f in json.loads(strict.out)["findings"]] == [OPERATOR]
    assert run("lint", save(around("Add"), tmp_path), "--target", "tensorrt", "--strict").code == 0
    assert run("lint", path, "--target", "tensorflow").code == 2


def test_the_table_is_asked_for_the_widths_that_were_given(tmp_path, run, monkeypatch):
    path = save(around("Add"), tmp_path)
    bytes_only = tuple(replace(r, activations=(U8,)) if r.op_type == "Add" else r for r in Qnn.table)
    monkeypatch.setattr(Qnn, "table", bytes_only)
    assert lint_model(path, "qnn").findings == ()
    result = lint_model(path, "qnn", "W4A16")
    assert result.bits == "W4A16"
    assert any(
        f.op_type == "Add" and "Add with u16 activations has no integer kernel" in f.reason for f in result.findings
    )
    assert " at W4A16: " in run("lint", path, "--target", "qnn", "--bits", "W4A16").out


@pytest.mark.parametrize(
    ("target", "bits", "said"),
    [
        ("tensorrt", "W4A8", "target 'tensorrt' runs no 4-bit weights; it runs 8"),
        ("x86", "W8A16", "runs no 16-bit activations"),
        ("x86", "auto", "lint with widths such as W4A8"),
        ("x86", "four", "no pair of widths"),
    ],
)
def test_widths_that_no_table_has_are_refused(tmp_path, target, bits, said):
    with pytest.raises(UsageError, match=said):
        lint_model(save(around("Add"), tmp_path), target, bits)
