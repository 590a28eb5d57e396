"""Scales as a task: files of scales, how they are fine-tuned, and how they are put into a compiled model."""
