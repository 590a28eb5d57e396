"""Searches by the loss of the whole network: clip ratios, rounding and biases, one after the other or jointly.

Imported only by the passes that search, for PyTorch is an optional dependency.
"""
