"""Linting: what a table says about a model is what placement would do, node by node, with the target's reason."""

import json

import pytest

from qcompiler.errors import ModelError
from qcompiler.inspection.linting import lint_model
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
