"""Lists the operators and types of an ``.ort`` file for reduced builds of the runtime; a process of its own.

Usage: ``python _operators_child.py MODEL.ort OUT.config``. The runtime's own tool writes the list; it changes the
import path of the process it runs in. This script imports nothing of this package.
"""

from __future__ import annotations

import sys
from pathlib import Path

HEAD = "# Operators of {} for ONNX Runtime's build.py --include_ops_by_config; {}\n"
TYPED = "with --enable_reduced_operator_type_support also their types"
UNTYPED = "all types are needed: its tool does not know all types of this model"


def main() -> None:
    """Write the list; its first line names the model without its folder, so that its bytes are the same anywhere."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # the tools import it where it is installed
    from onnxruntime.tools.ort_format_model import create_config_from_models

    model, out = Path(sys.argv[1]), Path(sys.argv[2])
    about = TYPED
    try:
        create_config_from_models([model], out, True)
    except KeyError:  # a type, such as int4, that the tool has no name for
        about = UNTYPED
        create_config_from_models([model], out, False)
    listed = [line for line in out.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    out.write_text(HEAD.format(model.name, about) + "".join(f"{line}\n" for line in listed), encoding="utf-8")


if __name__ == "__main__":
    main()
