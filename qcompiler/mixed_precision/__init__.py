"""Bits by layer: whose width is a choice, what each width costs in accuracy, and in which unit."""
