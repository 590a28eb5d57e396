"""The benchmark models: which file, which samples calibrate, which score, and under which license.

Calibration samples never score, and no tool sees a scoring sample. The public part needs no data folder; the
rest is read below the folder that ``--data`` names and is skipped where that folder lacks the file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import generated, readers
from benchmarks.process import REPOSITORY
from benchmarks.readers import Array, Arrays

_CALIBRATION = range(100)
_IMAGENET_SCORING = range(100, 500)
_DETECTOR_SCORING = range(100, 164)


@dataclass(frozen=True, slots=True)
class Samples:
    """What a model is calibrated on and scored on; every array has the samples first.

    Attributes:
        calibration: arrays by input name, the only samples that a tool sees.
        scoring: arrays by input name.
        labels: int64 class of each scoring sample, or None where the data has none.
    """

    calibration: Arrays
    scoring: Arrays
    labels: Array | None = None


@dataclass(frozen=True, slots=True)
class BenchmarkModel:
    """One model of the suite.

    Attributes:
        name: what the command line and the tables call it.
        file: where it lies, below the data folder, or below the repository if ``public``.
        samples: reads its samples, given the data folder.
        rows: which rows calibrate and which score, for the table.
        source: where it comes from, and its license.
        public: True if neither the model nor its samples need the data folder.
        write: writes the model, for one that is generated instead of stored.
    """

    name: str
    file: str
    samples: Callable[[Path], Samples]
    rows: str
    source: str
    public: bool = False
    write: Callable[[Path], None] | None = None

    def locate(self, data: Path | None, scratch: Path) -> Path | None:
        """Return the model's file, generated into ``scratch`` if need be, or None where it is missing."""
        if self.write is not None:
            path = scratch / self.file
            self.write(path)
            return path
        folder = REPOSITORY if self.public else data
        if folder is None or not (folder / self.file).is_file():
            return None
        return folder / self.file


def _imagenet(root: Path, normalize: Callable[[Array], Array]) -> Samples:
    def read(rows: range) -> Arrays:
        return {"input": readers.channels_first(normalize(readers.imagenet_pixels(root, rows)))}

    labels = readers.imagenet_labels(root, _IMAGENET_SCORING)
    return Samples(read(_CALIBRATION), read(_IMAGENET_SCORING), labels)


def _squeezenet(root: Path) -> Samples:
    return _imagenet(root, readers.torch_pixels)


def _mobilenet(root: Path) -> Samples:
    return _imagenet(root, readers.unit_pixels)


def _cifar10(root: Path, prepare: Callable[[Array], Array], rows: range = _CALIBRATION) -> Samples:
    calibration, _ = readers.cifar10(root / "cifar10" / "calib_512.npz")
    scoring, labels = readers.cifar10(root / "cifar10" / "test_2000.npz")
    chosen = calibration[rows.start : rows.stop]
    return Samples({"input": prepare(chosen)}, {"input": prepare(scoring)}, labels)


def _resnet20(root: Path, rows: range = _CALIBRATION) -> Samples:
    return _cifar10(root, lambda pixels: readers.channels_first(readers.torch_pixels(pixels)), rows)


def _resnet20_all(root: Path) -> Samples:
    return _resnet20(root, range(512))


def _resnet8(root: Path) -> Samples:
    return _cifar10(root, lambda pixels: pixels.astype("float32"))


def _resnet8_half(root: Path) -> Samples:
    return _cifar10(root, lambda pixels: pixels.astype("float16"))


def _keywords(root: Path) -> Samples:
    spectrograms, labels = readers.keyword_spectrograms(root / "kws" / "mfcc_500.npz")
    return Samples({"input": spectrograms[:100]}, {"input": spectrograms[100:500]}, labels[100:500])


def _mnist(root: Path) -> Samples:
    digits, labels = readers.mnist(root / "mnist" / "test_1500.npz")
    return Samples({"Input3": digits[:100]}, {"Input3": digits[500:1500]}, labels[500:1500])


def _detector(root: Path, name: str, size: tuple[int, int], prepare: Callable[[Array], Array]) -> Samples:
    def read(rows: range) -> Arrays:
        pixels = readers.imagenet_pixels(root, rows, size).astype("float32")
        return {name: readers.channels_first(prepare(pixels))}

    return Samples(read(_CALIBRATION), read(_DETECTOR_SCORING))


def _ultraface(root: Path) -> Samples:
    return _detector(root, "input", (320, 240), lambda pixels: (pixels - 127) / 128)


def _yolox(root: Path) -> Samples:
    # BGR; the stored images are square, so that scaling them to fit leaves nothing to pad.
    return _detector(root, "images", (416, 416), lambda pixels: pixels[..., ::-1])


def _fastestdet(root: Path) -> Samples:
    return _detector(root, "input", (352, 352), lambda pixels: pixels[..., ::-1] / 255)  # BGR


def _digits(_: Path) -> Samples:
    images, labels = readers.scikit_digits()
    return Samples({"image": images[:256]}, {"image": images[1000:1797]}, labels[1000:1797])


def _generated(_: Path) -> Samples:
    return Samples({"image": generated.textures(64, seed=1)}, {"image": generated.textures(128, seed=2)})


_IMAGENET_ROWS = "ImageNet sample images: calibrate 0-99, score 100-499"
_DETECTOR_ROWS = "ImageNet sample images, resized: calibrate 0-99, score 100-163"
_CIFAR_ROWS = "CIFAR-10: calibrate calib_512 0-99, score test_2000, all"

PUBLIC_MODELS = (
    BenchmarkModel(
        "digits_cnn",
        "examples/digits_cnn.onnx",
        _digits,
        "scikit-learn digits: calibrate 0-255, score 1000-1796",
        "this repository; Apache-2.0",
        public=True,
    ),
    BenchmarkModel(
        "generated_residual",
        "generated_residual.onnx",
        _generated,
        "generated textures: calibrate 64 (seed 1), score 128 (seed 2)",
        "generated by benchmarks/generated.py, random weights; Apache-2.0",
        public=True,
        write=generated.write_residual_cnn,
    ),
)

CNN_MODELS = (
    BenchmarkModel(
        "squeezenet1_1",
        "models/squeezenet1_1.onnx",
        _squeezenet,
        _IMAGENET_ROWS,
        "zchrissirhcz/squeezenet-ncnn-pnnx-opencv-cpp, no license file; torchvision weights, BSD-3-Clause",
    ),
    BenchmarkModel(
        "mobilenet_v1_025",
        "models/mobilenet_v1_025.onnx",
        _mobilenet,
        _IMAGENET_ROWS,
        "stm32ai-modelzoo, Google weights; Apache-2.0",
    ),
    BenchmarkModel(
        "cifar10_resnet20",
        "models/cifar10_resnet20.onnx",
        _resnet20,
        _CIFAR_ROWS,
        "akamaster/pytorch_resnet_cifar10; BSD-2-Clause",
    ),
    BenchmarkModel(
        "mlperftiny_resnet8",
        "models/mlperftiny_resnet8.onnx",
        _resnet8,
        _CIFAR_ROWS,
        "mlcommons/tiny; Apache-2.0",
    ),
    BenchmarkModel(
        "kws_dscnn",
        "models/kws_dscnn.onnx",
        _keywords,
        "EEMBC kws01 MFCC: calibrate 0-99, score 100-499",
        "mlcommons/tiny; Apache-2.0",
    ),
    BenchmarkModel(
        "mnist_cntk",
        "models/mnist_cntk.onnx",
        _mnist,
        "MNIST test_1500: calibrate 0-99, score 500-1499",
        "microsoft/onnxruntime-inference-examples; MIT",
    ),
    BenchmarkModel(
        "ultraface",
        "models/ultraface.onnx",
        _ultraface,
        _DETECTOR_ROWS,
        "microsoft/onnxruntime-inference-examples; MIT",
    ),
    BenchmarkModel(
        "yolox_nano",
        "models/yolox_nano.onnx",
        _yolox,
        _DETECTOR_ROWS,
        "opencv/opencv_zoo; Apache-2.0",
    ),
    BenchmarkModel(
        "fastestdet",
        "models/fastestdet.onnx",
        _fastestdet,
        _DETECTOR_ROWS,
        "dog-qiuqiu/FastestDet, BSD-3-Clause; through microsoft/onnxruntime-extensions, MIT",
    ),
)

HALF_RESNET8 = BenchmarkModel(
    "resnet8_fp16",
    "awkward/resnet8_fp16.onnx",
    _resnet8_half,
    _CIFAR_ROWS,
    "mlcommons/tiny, all weights float16; Apache-2.0",
)


def all_of_resnet20() -> BenchmarkModel:
    """Return ResNet-20 with every calibration row that there is: below 8 bits more of them help."""
    plain = next(model for model in CNN_MODELS if model.name == "cifar10_resnet20")
    return replace(plain, samples=_resnet20_all, rows="CIFAR-10: calibrate calib_512, all; score test_2000, all")
