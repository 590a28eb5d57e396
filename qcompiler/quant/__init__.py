"""The mathematics of uniform quantization: NumPy only, no ONNX."""
