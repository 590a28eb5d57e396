"""Files beside the model."""

import re
import shutil

import onnx
import pytest

from qcompiler.artifacts import write_artifact
from qcompiler.errors import QCompileError
from qcompiler.registry import load_target
from tests.models import conv_net, loop_net, save, session

CONFIG = "model.required_operators.config"


def operators(config):
    """Return (domain, operator) of every entry of a list of operators, by the rules that its format states."""
    found = set()
    for line in config.read_text().splitlines():
        if not line.startswith("#"):
            domain, _, entries = line.split(";", 2)
            found |= {(domain, name) for name in re.sub(r"\{[^{}]*(\{[^{}]*\})?[^{}]*\}", "", entries).split(",")}
    return found


def graph_operators(graph):
    for node in graph.node:
        yield (node.domain or "ai.onnx", node.op_type)
        for attribute in node.attribute:
            yield from graph_operators(attribute.g)


def write_all(proto, folder):
    folder.mkdir()
    model = save(proto, folder)
    return [write_artifact(name, model) for name in load_target("arm").artifacts()]


@pytest.mark.parametrize("make", [conv_net, loop_net])
def test_the_list_holds_the_operators_that_run(make, tmp_path):
    """The same graph written as ONNX, by the same rewrites, holds what the list must."""
    _, config = write_all(make(), tmp_path / "a")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    providers = ["CPUExecutionProvider"]
    onnxruntime.InferenceSession(
        tmp_path / "a" / "model.onnx", options, providers=providers, disabled_optimizers=["NchwcTransformer"]
    )
    graph = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph
    assert operators(config) == set(graph_operators(graph)) != set()


def test_the_list_is_read_by_the_tool_of_the_runtime(tmp_path):
    parser = pytest.importorskip("onnxruntime.tools.reduced_build_config_parser")
    _, config = write_all(conv_net(), tmp_path / "a")
    required, types = parser.parse_config(str(config), enable_type_reduction=True)
    assert {(domain, op) for domain, sets in required.items() for ops in sets.values() for op in ops} == operators(
        config
    )
    assert types is not None


def test_the_same_bytes_in_another_folder(tmp_path):
    first, second = (write_all(conv_net(), tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert b"model.ort" in first[1].read_bytes().splitlines()[0]
    assert str(tmp_path).encode() not in first[1].read_bytes()


def test_what_cannot_be_written(tmp_path):
    model = save(conv_net(), tmp_path)
    with pytest.raises(QCompileError, match=r"no writer for the file 'model\.tflite'; .* model\.ort"):
        write_artifact("model.tflite", model)
    with pytest.raises(QCompileError, match=f"could not write {CONFIG}"):
        write_artifact(CONFIG, model)


def test_the_ort_file_runs(tmp_path):
    ort, _ = write_all(conv_net(), tmp_path / "a")
    alone = shutil.copy(ort, tmp_path / "alone.ort")
    assert session(tmp_path / alone).get_outputs()
