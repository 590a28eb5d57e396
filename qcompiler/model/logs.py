"""Silence libraries that log, with tracebacks, what this package reports in one line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = ("onnx_ir", "onnxscript")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence ``onnx_ir`` and ``onnxscript`` within a block."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
