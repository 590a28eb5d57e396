"""Lowered tables: the plan bit for bit, whatever the indices look like, and no table of floats in the session."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from qcompiler.model.save import to_proto
from qcompiler.row_codes import RowCodes, RowKind
from tests.compiling import context, run_passes
from tests.models import FLOAT, build
from tests.passes.tables import COLUMNS, INT32, INT64, ROWS, lookup_net, made_codes, mixing_codes, planned, table


def mixed(most: int, fewest: int = 0, rows: int = ROWS) -> np.ndarray:
    return np.random.default_rng(3).integers(fewest, most + 1, rows).astype(np.uint8)


def even(bits: int) -> np.ndarray:
    return np.full(ROWS, bits, np.uint8)


FORMS = {
    "words, 0 to 3 bits": made_codes(RowKind.PRODUCT, mixed(3)),
    "words, 1 bit": made_codes(RowKind.PRODUCT, even(1)),
    "words, 2 bits": made_codes(RowKind.PRODUCT, even(2)),
    "words, 0 or 1 bit": made_codes(RowKind.PRODUCT, mixed(1)),
    "words, groups of columns": made_codes(RowKind.PRODUCT, mixed(2), groups=4),
    "mixed words, 0 to 3 bits": mixing_codes(mixed(3)),
    "mixed words, 1 bit": mixing_codes(even(1)),
    "signs, 0 to 8 bits": made_codes(RowKind.BINARY, mixed(8)),
    "signs, 2 bits": made_codes(RowKind.BINARY, even(2)),
    "signs, groups of columns": made_codes(RowKind.BINARY, mixed(3), groups=4),
    "grid, 2 bits": made_codes(RowKind.GRID, even(2)),
    "grid, 4 bits": made_codes(RowKind.GRID, even(4)),
    "grid, 8 bits": made_codes(RowKind.GRID, even(8)),
    "no bits": made_codes(RowKind.PRODUCT, even(0)),
}


def lowered(proto: onnx.ModelProto, codes: dict[str, RowCodes]) -> onnx.ModelProto:
    state = run_passes(planned(proto, codes), context("x86", None), "pack-embeddings")
    return to_proto(state.model)


def session(model: onnx.ModelProto, **options: object) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    for name, value in options.items():
        setattr(settings, name, value)
    return onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", FORMS)
def test_all_rows_are_the_plan_bit_for_bit(name):
    codes = FORMS[name]
    model = lowered(lookup_net(), {"w": codes})
    every = np.arange(ROWS).reshape(3, -1)
    (found,) = session(model).run(None, {"ids": every})
    np.testing.assert_array_equal(found.reshape(ROWS, COLUMNS), codes.decode())


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("kind", [INT32, INT64])
def test_indices_of_any_kind_and_shape(name, kind):
    codes, decoded = FORMS[name], FORMS[name].decode()
    run = session(lowered(lookup_net(kind), {"w": codes}))
    dtype = np.int32 if kind == INT32 else np.int64
    for ids in ([[5]], [[0, 0, 0], [7, 299, 0]], [[-1, -ROWS, 3]], np.zeros((0, 4)), np.zeros((2, 0))):
        wanted = np.asarray(ids, dtype)
        (found,) = run.run(None, {"ids": wanted})
        np.testing.assert_array_equal(found, np.take(decoded, wanted, axis=0))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("index", [ROWS, -ROWS - 1, 10**6])
def test_indices_out_of_range_are_refused_as_before(name, index):
    ids = np.asarray([[0, index]])
    for model in (lookup_net(), lowered(lookup_net(), {"w": FORMS[name]})):
        with pytest.raises(Exception, match=r"out of data bounds|indices element out|index"):
            session(model, log_severity_level=4).run(None, {"ids": ids})


@pytest.mark.parametrize("shape", [(), ("n",), (2, 3), (1, "n", 2)])
@pytest.mark.parametrize(
    "name", ["words, 0 to 3 bits", "mixed words, 1 bit", "signs, groups of columns", "grid, 4 bits"]
)
def test_ranks(name, shape):
    codes = FORMS[name]
    run = session(lowered(lookup_net(shape=shape), {"w": codes}))
    ids = np.full([d if isinstance(d, int) else 4 for d in shape], 11)
    (found,) = run.run(None, {"ids": ids})
    np.testing.assert_array_equal(found, np.take(codes.decode(), ids, axis=0))


def test_unknown_rank():
    proto = lookup_net()
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    codes = FORMS["words, 0 to 3 bits"]
    run = session(lowered(proto, {"w": codes}))
    for ids in (np.asarray(4), np.asarray([[1, 2], [3, 4]])):
        np.testing.assert_array_equal(run.run(None, {"ids": ids})[0], np.take(codes.decode(), ids, axis=0))


@pytest.mark.parametrize("kind", [RowKind.PRODUCT, RowKind.BINARY])
def test_columns_that_do_not_fill_bytes(kind):
    codes = made_codes(kind, mixed(2), columns=21)
    run = session(lowered(lookup_net(weight=table(columns=21)), {"w": codes}))
    (found,) = run.run(None, {"ids": np.arange(ROWS)[None]})
    np.testing.assert_array_equal(found[0], codes.decode())


def test_several_tables_and_a_shared_one():
    nodes = [
        helper.make_node("Gather", ["w", "a"], ["x"], name="first"),
        helper.make_node("Gather", ["w", "b"], ["y"], name="second"),
        helper.make_node("Gather", ["v", "b"], ["z"], name="third"),
    ]
    inputs = [("a", INT64, ["n"]), ("b", INT32, [1, "m"])]
    outputs = [("x", FLOAT, ["n", COLUMNS]), ("y", FLOAT, [1, "m", COLUMNS]), ("z", FLOAT, [1, "m", COLUMNS])]
    proto = build(nodes, inputs, outputs, {"w": table(), "v": table(seed=1)})
    codes = {"w": FORMS["mixed words, 0 to 3 bits"], "v": FORMS["grid, 4 bits"]}
    model = lowered(proto, codes)
    planes = [i for i in model.graph.initializer if i.name.startswith("w_plane")]
    assert len(planes) == len(codes["w"].planes)  # shared, not stored twice
    a, b = np.arange(9), np.asarray([[4, 299]], np.int32)
    x, y, z = session(model).run(None, {"a": a, "b": b})
    np.testing.assert_array_equal(x, codes["w"].decode()[a])
    np.testing.assert_array_equal(y, codes["w"].decode()[b])
    np.testing.assert_array_equal(z, codes["v"].decode()[b])


@pytest.mark.parametrize("name", ["words, 0 to 3 bits", "mixed words, 0 to 3 bits", "signs, 2 bits", "grid, 4 bits"])
def test_a_tied_projection_reads_the_same_codes(name):
    nodes = [
        helper.make_node("Gather", ["w", "ids"], ["e"], name="embed"),
        helper.make_node("Gemm", ["e", "w"], ["y"], name="project", transB=1),
    ]
    proto = build(nodes, [("ids", INT64, ["n"])], [("y", FLOAT, ["n", ROWS])], {"w": table()})
    codes = FORMS[name]
    model = lowered(proto, {"w": codes})
    assert "w" not in {i.name for i in model.graph.initializer}
    ids, decoded = np.arange(20), codes.decode()
    (found,) = session(model).run(None, {"ids": ids})
    reference = build(nodes, [("ids", INT64, ["n"])], [("y", FLOAT, ["n", ROWS])], {"w": decoded})
    np.testing.assert_array_equal(found, session(reference).run(None, {"ids": ids})[0])


@pytest.mark.parametrize("name", FORMS)
def test_the_session_holds_no_table_of_floats(name, tmp_path):
    codes = FORMS[name]
    session(
        lowered(lookup_net(), {"w": codes}), optimized_model_filepath=str(tmp_path / "o.onnx"), log_severity_level=4
    )
    constants = {i.name: i for i in onnx.load(tmp_path / "o.onnx").graph.initializer}
    floats = [int(np.prod(i.dims)) for i in constants.values() if i.data_type in (FLOAT, onnx.TensorProto.FLOAT16)]
    scales = max((s.size + s.shape[1] for s in codes.scales), default=0)
    assert max(floats) <= max(256 * 8, scales) < ROWS * COLUMNS


@pytest.mark.parametrize(("name", "constants"), [("words, 0 to 3 bits", 128), ("mixed words, 0 to 3 bits", 256)])
def test_the_file_holds_what_the_plan_says(name, constants):
    codes = FORMS[name]
    model = lowered(lookup_net(), {"w": codes})
    stored = sum(len(i.raw_data) for i in model.graph.initializer)
    dummies = sum(p.shape[1] for p in codes.planes) + 2
    assert 0 <= stored - codes.stored_bytes - dummies <= constants  # shapes, limits of planes, numbers to unpack with
