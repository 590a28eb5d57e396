"""What the bytes of a written model are spent on."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.codec.bits import packed_bytes
from qcompiler.model.save import save_model
from qcompiler.plan import Role
from qcompiler.recipe import MatchRule
from qcompiler.row_codes import RowKind
from qcompiler.runtime.storage import BIASES, FLOAT, GRAPH, OTHER, PACKED, ROWS, SCALES, WHOLE, stored_bytes
from tests.compiling import context, lowered, planned, run_passes
from tests.models import conv_net, save, token_net
from tests.passes.states import table_net
from tests.passes.tables import ROWS as TABLE_ROWS
from tests.passes.tables import lookup_net, made_codes
from tests.passes.tables import planned as row_plan
from tests.passes.test_pack_bits import conv_and_gemm


def parts(folder, proto, **options) -> tuple[dict[str, int], object]:
    state, where = planned(proto, **options)
    files = save_model(lowered(state, where).model, folder / "model.onnx")
    total = sum(f.stat().st_size for f in files)
    found = stored_bytes(files[0], total)
    assert sum(found.values()) == total
    assert list(found.values()) == sorted(found.values(), reverse=True)
    return found, state


@pytest.mark.parametrize("width", [3, 4, 8])
def test_weights_by_how_they_are_stored(tmp_path, width):
    found, state = parts(tmp_path, conv_and_gemm(), bits=f"W{width}A8")
    sizes = [24 * 216, 32 * 216]
    if width == 8:
        assert found[WHOLE] == sum(sizes)
        assert PACKED not in found
    else:
        tables = {t.levels.tobytes() for t in state.plan.tensors.values() if t.role is Role.WEIGHT}
        assert found[PACKED] == sum(packed_bytes(n, width) for n in sizes) + 2**width * len(tables)
        assert WHOLE not in found
    assert FLOAT not in found
    assert found[BIASES] == 4 * (24 + 32)
    channels = 4 * (24 + 32) + 32 + 4 * 32  # and the zero points of the Gemm, and the scales of its bias
    assert channels < found[SCALES] < channels + 64
    assert found[GRAPH] > 500


def test_what_stays_in_float(tmp_path):
    found, _ = parts(tmp_path, conv_and_gemm(), rules=[MatchRule(pattern="^conv$", keep_float=True)])
    assert found[FLOAT] == 4 * 24 * 216


def test_scales_of_products_at_run_time_and_of_float_nodes(tmp_path):
    found, state = parts(tmp_path, token_net(words=200), bits="W4A8")
    scales = [t.scale.nbytes for t in state.plan.tensors.values() if t.role is Role.WEIGHT and t.scale is not None]
    assert found[SCALES] == sum(scales)
    assert found[PACKED] >= packed_bytes(200 * 12 + 200 * 6, 4)


def test_palettes_are_no_weights(tmp_path):
    found, _ = parts(tmp_path, table_net())
    assert PACKED not in found
    assert found[OTHER] >= 32 * 32


def test_a_float_model(tmp_path):
    path = save(conv_net(batch_norm=False), tmp_path)
    found = stored_bytes(path, path.stat().st_size)
    assert set(found) <= {FLOAT, BIASES, OTHER, GRAPH}
    assert found[FLOAT] > 0


@pytest.mark.parametrize(
    ("kind", "bits"), [(RowKind.PRODUCT, (1, 3)), (RowKind.BINARY, (1, 2)), (RowKind.GRID, (4, 4))]
)
def test_rows_of_tables(tmp_path, kind, bits):
    widths = np.linspace(*bits, TABLE_ROWS).astype(np.uint8)
    codes = made_codes(kind, widths)
    state = row_plan(lookup_net(), {"w": codes})
    lowered = run_passes(state, context("x86"), "pack-embeddings")
    path = save_model(lowered.model, tmp_path / "rows.onnx")[0]
    found = stored_bytes(path, path.stat().st_size)
    words = codes.tables.nbytes + codes.mean.nbytes
    fillers = sum(plane.shape[1] for plane in codes.planes) + 2 * len(codes.scales)
    assert codes.stored_bytes - words <= found[ROWS] <= codes.stored_bytes - words + fillers
