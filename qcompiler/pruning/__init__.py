"""Pruning a network: which weights may go, what their absence costs, and the walk that removes them."""
