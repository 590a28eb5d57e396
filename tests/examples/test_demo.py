"""The demo: its model, its samples, and the run that ``make demo`` shows."""

import importlib.util
import json

import numpy as np
import onnx
import pytest

from tests import models


def test_the_committed_model_is_small_and_plain(examples):
    path = examples / "digits_cnn.onnx"
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert path.stat().st_size < 60_000
    assert {"Conv", "BatchNormalization", "Relu", "MaxPool", "Gemm"} <= {n.op_type for n in model.graph.node}
    assert not model.metadata_props
    assert not any(node.doc_string for node in model.graph.node)
    (image,), (logits,) = model.graph.input, model.graph.output
    assert (image.name, logits.name) == ("image", "logits")
    dimensions = [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim]
    assert dimensions == ["N", 1, 8, 8]


def test_the_committed_model_reads_digits(examples, digits):
    with np.load(digits / "digits.npz") as archive:
        images = archive["image"]
    labels = np.load(digits / "labels.npy")
    assert images.shape == (1053, 1, 8, 8)
    assert images.dtype == np.float32
    assert (images.min(), images.max()) == (0.0, 1.0)
    (logits,) = models.run(examples / "digits_cnn.onnx", {"image": images})
    assert (logits.argmax(1) == labels).mean() > 0.95


def test_the_samples_are_not_those_of_the_training(digits):
    from sklearn.datasets import load_digits

    labels = np.load(digits / "labels.npy")
    assert labels.tolist() == [*load_digits().target[:256], *load_digits().target[1000:]]


def test_the_demo_ends_in_reports(examples, python, digits):
    out = digits / "out"
    done = python(examples / "demo.py", out, cwd=digits)
    assert done.returncode == 0, done.stderr
    assert "Targets side by side" in done.stdout
    assert done.stdout.rstrip().endswith("for the full report.")
    assert (out / "result" / "comparison.html").is_file()
    for target in ("arm-cortex-a76", "x86"):
        report = json.loads((out / "result" / target / "report.json").read_text())
        assert report["measured"]["held"]
        assert report["verdict"]["accuracy_verified"]
        assert report["verdict"]["metric"]["name"] == "top1"


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
@pytest.mark.slow
def test_training_gives_a_model_as_good_as_the_committed_one(examples, python, tmp_path):
    done = python(examples / "train_digits.py", tmp_path / "trained.onnx", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split("top-1")[1].split("%")[0]) > 95.0
