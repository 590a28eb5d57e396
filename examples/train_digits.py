"""Train the small convolutional network of the demo, and export it to ONNX.

``python examples/train_digits.py OUT.onnx`` takes some seconds on one processor. It needs torch, which
qcompile itself needs only for searches, so the file that it made is committed as ``examples/digits_cnn.onnx``.
"""

from __future__ import annotations

import sys
import warnings
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path

import torch
from digits_data import TRAINING_ROWS, load_images
from torch import nn

CHANNELS = (24, 24, 32)
EPOCHS = 40
BATCH = 32
SEED = 0


def build_network() -> nn.Sequential:
    """Return the untrained network: ``image`` (N, 1, 8, 8) in 0..1 -> ``logits`` (N, 10)."""
    layers: dict[str, nn.Module] = {}
    for number, (inputs, outputs) in enumerate(pairwise((1, *CHANNELS)), start=1):
        layers[f"conv{number}"] = nn.Conv2d(inputs, outputs, 3, padding=1)
        layers[f"norm{number}"] = nn.BatchNorm2d(outputs)
        layers[f"relu{number}"] = nn.ReLU()
    layers |= {"pool": nn.MaxPool2d(4), "flatten": nn.Flatten(), "head": nn.Linear(4 * CHANNELS[-1], 10)}
    return nn.Sequential(OrderedDict(layers))


def train(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Train a network in place with a one-cycle schedule, every batch moved by up to a pixel."""
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    network.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(images))
        for batch in order[: len(order) // BATCH * BATCH].split(BATCH):
            shift = tuple(torch.randint(-1, 2, (2,)).tolist())
            scores = network(images[batch].roll(shift, (2, 3)))
            optimizer.zero_grad()
            nn.functional.cross_entropy(scores, labels[batch], label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
    network.eval()


def export(network: nn.Module, path: Path) -> None:
    """Write a trained network as ONNX, with its BatchNorm nodes as they are."""
    with warnings.catch_warnings():
        # The exporter that folds nothing is the older one, and says so.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(1, 1, 8, 8),),
            path,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
            opset_version=17,
            training=torch.onnx.TrainingMode.PRESERVE,
            dynamo=False,
        )


def main() -> int:
    """Train, score and export to the file that the command line names."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "digits_cnn.onnx")
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    images, labels = (torch.from_numpy(array) for array in load_images())
    network = build_network()
    train(network, images[TRAINING_ROWS], labels[TRAINING_ROWS])
    with torch.no_grad():
        right = network(images[TRAINING_ROWS.stop :]).argmax(1) == labels[TRAINING_ROWS.stop :]
    export(network, path)
    share = 100 * right.float().mean().item()
    print(f"{path}: {path.stat().st_size} bytes, top-1 {share:.1f} % on {len(right)} images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
