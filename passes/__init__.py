"""The built-in passes: name -> where to load it from, and the default order. Nothing is imported here."""

from __future__ import annotations

PASSES: dict[str, str] = {
    "widen-float16": "qcompiler.passes.widen_float16:WidenFloat16",
    "fold-batch-norm": "qcompiler.passes.fold_batch_norm:FoldBatchNorm",
    "equalize-channels": "qcompiler.passes.equalize_channels:EqualizeChannels",
    "smooth-activations": "qcompiler.passes.smooth_activations:SmoothActivations",
    "estimate-statistics": "qcompiler.passes.estimate_statistics:EstimateStatistics",
    "choose-matmuls": "qcompiler.passes.choose_matmuls:ChooseMatmuls",
    "place": "qcompiler.passes.place:Place",
    "observe": "qcompiler.passes.observe:Observe",
    "embedding-bits": "qcompiler.passes.embedding_bits:EmbeddingBits",
    "allocate-bits": "qcompiler.passes.allocate_bits:AllocateBits",
    "calibrate": "qcompiler.passes.calibrate:Calibrate",
    "scale-weights": "qcompiler.passes.scale_weights:ScaleWeights",
    "solve-codes": "qcompiler.passes.solve_codes:SolveCodes",
    "prune": "qcompiler.passes.prune:Prune",
    "flexor": "qcompiler.passes.flexor:Flexor",
    "correct-bias": "qcompiler.passes.correct_bias:CorrectBias",
    "solve-on-prefix": "qcompiler.passes.solve_on_prefix:SolveOnPrefix",
    "clip-round-search": "qcompiler.passes.clip_round_search:ClipRoundSearch",
    "joint-clip-search": "qcompiler.passes.joint_clip_search:JointClipSearch",
    "reconstruct-blocks": "qcompiler.passes.reconstruct_blocks:ReconstructBlocks",
    "fine-tune": "qcompiler.passes.fine_tune:FineTune",
    "pack-embeddings": "qcompiler.passes.pack_embeddings:PackEmbeddings",
    "insert-qdq": "qcompiler.passes.insert_qdq:InsertQdq",
    "align-channels": "qcompiler.passes.align_channels:AlignChannels",
    "pad-codes": "qcompiler.passes.pad_codes:PadCodes",
    "insert-dynamic": "qcompiler.passes.insert_dynamic:InsertDynamic",
    "matmul-nbits": "qcompiler.passes.matmul_nbits:MatmulNbits",
    "pack-weights": "qcompiler.passes.pack_weights:PackWeights",
    "sparse-encode": "qcompiler.passes.sparse_encode:SparseEncode",
    "pack-xor": "qcompiler.passes.pack_xor:PackXor",
    "pack-bits": "qcompiler.passes.pack_bits:PackBits",
    "raise-opset": "qcompiler.passes.raise_opset:RaiseOpset",
    "store-int4": "qcompiler.passes.store_int4:StoreInt4",
    "pack-constants": "qcompiler.passes.pack_constants:PackConstants",
}

_REWRITES = ("widen-float16", "fold-batch-norm")

LOSSLESS = frozenset(
    {"align-channels", "pack-bits", "pack-constants", "pack-xor", "pad-codes", "sparse-encode", "store-int4"}
)
"""Lowering passes that change no value: trial runs do without them."""

EXACT = LOSSLESS | {"raise-opset"}
"""The same, with those that a trial needs to run at all."""

WITH_DATA = (
    *_REWRITES,
    "equalize-channels",
    "smooth-activations",
    "choose-matmuls",
    "place",
    "observe",
    "embedding-bits",
    "allocate-bits",
    "scale-weights",
    "solve-codes",
    "prune",
    "flexor",
    "calibrate",
    "correct-bias",
)
"""Default order of -O1 with calibration data; the target's lowering passes follow."""

WITHOUT_DATA = (
    *_REWRITES,
    "estimate-statistics",
    "choose-matmuls",
    "place",
    "embedding-bits",
    "allocate-bits",
    "scale-weights",
    "solve-codes",
    "prune",
    "flexor",
    "calibrate",
    "correct-bias",
)
"""Default order of -O1 without data."""

_SEARCHES = ("solve-on-prefix", "clip-round-search", "joint-clip-search")

IMPROVING: dict[int, tuple[str, ...]] = {2: _SEARCHES, 3: (*_SEARCHES, "reconstruct-blocks")}
"""Effort -> the plan passes that improve a verified result, in order; higher efforts name those of lower ones too.

They run if some weight or activation has fewer than 8 bits: at 8 bits what is left to gain is below what the gate can
tell. A pass that finds nothing to do returns ``changed=False`` at once.
"""

RETRAINING = ("fine-tune",)
"""What ``--fine-tune`` does to a plan that is replayed."""

TRAINING = ("solve-on-prefix", *RETRAINING)
"""What ``--fine-tune`` adds behind all of these, but for what is there already."""

TRAINING_WORDS = ("fine-tune{rate=0.012,rounds=1,rows=32}",)
"""The same where weights are code words: these have further to go, and are no problem for solvers of single codes."""

SETTLING = frozenset({"correct-bias"})
"""Passes that run again behind each of these: what they decide follows from what a search changed."""

_PLAIN = (
    "embedding-bits{measured=false}",
    "allocate-bits{measured=false}",
    "scale-weights{rounding=nearest}",
    "prune",
    "flexor",
    "calibrate{method=minmax}",
)

MINIMAL = {
    True: (*_REWRITES, "place", "observe", *_PLAIN),
    False: (*_REWRITES, "estimate-statistics", "place", *_PLAIN),
}
"""Order of -O0 (min-max, no search), with data and without."""
