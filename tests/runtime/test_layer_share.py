"""Execution graphs of other runtimes, as they name their nodes, become the same share as ONNX Runtime's."""

import pytest

from qcompiler.runtime.layer_share import layer_share
from qcompiler.runtime.optimized import Origins
from tests.compiling import start
from tests.models import conv_net

PLANNED = start(conv_net()).model


def test_fused_nodes_count_once_under_the_name_of_their_layer():
    layers = [
        (("image_q",), "FakeQuantize", False),
        (("conv1/WithoutBiases", "conv1", "act1_q"), "Convolution", True),
        (("dw/WithoutBiases",), "Convolution", True),
        (("pw", "p_q", "add"), "Convolution", False),
        (("fc/WithoutBiases/DequantizationMultiply", "scores"), "FullyConnected", True),
    ]
    share = layer_share(layers, PLANNED)
    assert (share.compute_nodes, share.integer_nodes) == (4, 3)
    assert share.float_nodes == ("pw",)
    assert 0 < share.integer_macs < share.macs
    assert share.runtime_ops == {"Convolution": 3, "FakeQuantize": 1, "FullyConnected": 1}


def test_a_layer_of_unknown_name_is_counted_and_named_as_it_is():
    share = layer_share([(("made_up_17",), "Convolution", False)], PLANNED)
    assert (share.compute_nodes, share.integer_nodes, share.float_nodes) == (1, 0, ("made_up_17",))
    assert share.integer_macs == 0


@pytest.mark.parametrize(
    "name", ["conv1", "conv1/WithoutBiases", "conv1/DequantizationMultiply", "conv1_original", "conv1_token_3"]
)
def test_what_a_runtime_appends_is_taken_off(name):
    assert Origins(PLANNED).find(name).name == "conv1"
