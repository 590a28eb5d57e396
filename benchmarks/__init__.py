"""Benchmarks of the compiler against other quantisers, on the same models, samples and machine."""
