"""The demo: a small digit classifier, compiled for two targets on real images, with its report.

``python examples/demo.py [DIR]`` writes everything below DIR (default ``demo-out``). ``make demo`` does the
set-up too.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent


def run(*command: str | Path) -> int:
    """Run a Python program in a process of its own and return its exit code."""
    sys.stdout.flush()
    return subprocess.run([sys.executable, *map(str, command)], check=False).returncode


def provide_model(folder: Path) -> Path:
    """Return the path of the model in a folder: trained here if torch is there, else the committed one."""
    path = folder / "digits_cnn.onnx"
    if importlib.util.find_spec("torch") is not None:
        print("Training examples/train_digits.py ...")
        if run(EXAMPLES / "train_digits.py", path) == 0:
            return path
        print("The training failed; the committed model takes its place.")
    else:
        print("torch is not installed: taking the model that examples/train_digits.py trained before.")
    shutil.copyfile(EXAMPLES / path.name, path)
    return path


def main() -> int:
    """Compile the model for arm and x86, and say where the report is."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo-out")
    folder.mkdir(parents=True, exist_ok=True)
    model = provide_model(folder)
    if code := run(EXAMPLES / "digits_data.py", folder):
        return code
    options = (
        ("--target", "arm", "--target", "x86"),
        ("--data", str(folder / "digits.npz"), "--labels", str(folder / "labels.npy")),
        ("--verify-samples", "512", "--output", str(folder / "result"), "--force"),
    )
    print(f"\n$ qcompile {model}", *(" ".join(words) for words in options), sep=" \\\n    ", end="\n\n")
    code = run("-m", "qcompiler", model, *(word for words in options for word in words))
    if code == 0:
        print(f"\nOpen {folder / 'result' / 'comparison.html'} in a browser for the full report.")
    return code


if __name__ == "__main__":
    sys.exit(main())
