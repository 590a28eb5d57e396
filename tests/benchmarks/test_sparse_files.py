"""The benchmark of sparse files: what counts as identical, and what it asks of the command."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from benchmarks.sparse_files import compared, load_seconds, main, parse_arguments, said
from tests.models import conv_net, save


def test_outputs_are_compared_byte_by_byte(tmp_path):
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    first, second = conv_net(), conv_net()
    files = [save(proto, folder) for proto, folder in zip((first, second), folders, strict=True)]
    rng = np.random.default_rng(0)
    inputs = [{"image": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(3)]
    assert compared(*files, inputs) == (3, 3)
    weight = next(t for t in second.graph.initializer if len(t.dims) == 4)
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.01, weight.name))
    files[1] = save(second, folders[1])
    same, total = compared(*files, inputs)
    assert same < total
    assert set(load_seconds({"a": files[0], "b": files[1]})) == {"a", "b"}


def test_a_difference_is_said_loudly():
    assert said(32, 32) == "all 32 identical"
    assert said(31, 32) == "**1 of 32 DIFFER**"


def test_unknown_models_end_the_program(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--models", "luck"])
    assert "unknown models: luck" in capsys.readouterr().err


@pytest.mark.slow
def test_every_format_of_the_public_model_gives_the_same_outputs(capsys):
    assert main(["--models", "digits_cnn"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("all 32 identical") == 4
    assert "DIFFER" not in printed
