"""The built-in passes: name -> where to load it from, and the default order. Nothing is imported here."""

from __future__ import annotations

PASSES: dict[str, str] = {
    "widen-float16": "qcompiler.passes.widen_float16:WidenFloat16",
    "fold-batch-norm": "qcompiler.passes.fold_batch_norm:FoldBatchNorm",
    "equalize-channels": "qcompiler.passes.equalize_channels:EqualizeChannels",
    "estimate-statistics": "qcompiler.passes.estimate_statistics:EstimateStatistics",
    "place": "qcompiler.passes.place:Place",
    "observe": "qcompiler.passes.observe:Observe",
    "calibrate": "qcompiler.passes.calibrate:Calibrate",
    "scale-weights": "qcompiler.passes.scale_weights:ScaleWeights",
    "correct-bias": "qcompiler.passes.correct_bias:CorrectBias",
    "insert-qdq": "qcompiler.passes.insert_qdq:InsertQdq",

    "pack-weights": "qcompiler.passes.pack_weights:PackWeights",
}

WITH_DATA = ("widen-float16", "fold-batch-norm", "equalize-channels", "place", "observe", "calibrate", "scale-weights", "correct-bias")
"""Default order of -O1 with calibration data; the target's lowering passes follow."""

WITHOUT_DATA = ("widen-float16", "fold-batch-norm", "estimate-statistics", "place", "calibrate", "scale-weights")
"""Default order of -O1 without data."""

MINIMAL = {
    True: ("widen-float16", "fold-batch-norm", "place", "observe", "calibrate{method=minmax}", "scale-weights{search=false}"),
    False: ("widen-float16", "fold-batch-norm", "estimate-statistics", "place", "calibrate{method=minmax}", "scale-weights{search=false}"),
}
"""Order of -O0 (min-max, no search), with and without data."""
