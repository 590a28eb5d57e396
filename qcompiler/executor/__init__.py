"""A float model in PyTorch: differentiable, in batches, and with the planned quantization simulated in it.

Searches and training need gradients and thousands of evaluations; ONNX Runtime, which judges every result, gives
neither. This package is imported only by what needs it, for PyTorch is an optional dependency.
"""

from __future__ import annotations

import importlib.util

from qcompiler.errors import RuntimeUnavailable

if importlib.util.find_spec("torch") is None:
    raise RuntimeUnavailable('searches by gradient and loss need PyTorch: pip install "qcompiler[torch]"')
