"""The built-in targets: name -> where to load it from. Nothing is imported here."""

from __future__ import annotations

TARGETS: dict[str, str] = {
    "arm": "qcompiler.targets.arm:Arm",
    "x86": "qcompiler.targets.x86:X86",
    "openvino": "qcompiler.targets.openvino:Openvino",
    "qnn": "qcompiler.targets.qnn:Qnn",
    "reference": "qcompiler.targets.reference:Reference",
    "tensorrt": "qcompiler.targets.tensorrt:Tensorrt",
    "nnapi": "qcompiler.targets.nnapi:Nnapi",
}
