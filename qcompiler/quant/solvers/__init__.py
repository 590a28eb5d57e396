"""Solvers of integer codes: a new one is a file here and a row in this table."""

from __future__ import annotations

from collections.abc import Callable

from qcompiler.quant.solvers.adaround import Adaround
from qcompiler.quant.solvers.aespa import Aespa
from qcompiler.quant.solvers.boa import Boa
from qcompiler.quant.solvers.descent import Descent
from qcompiler.quant.solvers.flexround import Flexround
from qcompiler.quant.solvers.gptq import Gptq
from qcompiler.quant.solvers.nearest import Nearest
from qcompiler.quant.solvers.problem import Solver

SOLVERS: dict[str, Callable[[], Solver]] = {
    "nearest": Nearest,
    "gptq": Gptq,
    "descent": Descent,
    "adaround": Adaround,
    "flexround": Flexround,
    "boa": Boa,
    "aespa": Aespa,
}
"""Name on the command line -> solver with its default options, cheapest first; those of ``COUPLED`` at the end."""

COUPLED = ("boa", "aespa")
"""Solvers that heed the row Hessian of a head of attention; on other layers they add nothing to the others."""
