"""Calibration and evaluation inputs: files, folders, callables and synthetic values, one protocol."""

from qcompiler.data.callables import load_callable
from qcompiler.data.dataset import Dataset, Feeds, InputSpec, Subset
from qcompiler.data.labels import load_labels
from qcompiler.data.opening import open_dataset
from qcompiler.data.specs import check_outputs, input_specs
from qcompiler.data.split import MAX_ACCEPTANCE, Split, split
from qcompiler.data.synthetic import synthetic_inputs

__all__ = [
    "MAX_ACCEPTANCE",
    "Dataset",
    "Feeds",
    "InputSpec",
    "Split",
    "Subset",
    "check_outputs",
    "input_specs",
    "load_callable",
    "load_labels",
    "open_dataset",
    "split",
    "synthetic_inputs",
]
