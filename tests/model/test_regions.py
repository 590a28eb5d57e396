"""Questions about graphs."""

from __future__ import annotations

import onnx_ir as ir

from qcompiler.model.regions import shared_scale_groups


def test_groups_are_components_in_the_order_named() -> None:
    a, b, c, d, e, f = (ir.Value(name=n) for n in "abcdef")
    assert shared_scale_groups([(c, d), (a, b), (b, e), (d, f)]) == ((c, d, f), (a, b, e))
    assert shared_scale_groups([(a, a)]) == ((a,),)
    assert shared_scale_groups([]) == ()


def test_values_of_the_same_name_are_not_the_same() -> None:
    a, b, c = (ir.Value(name="v") for _ in range(3))
    assert shared_scale_groups([(a, b), (c, c)]) == ((a, b), (c,))
