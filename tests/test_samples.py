"""How many samples decide: more of them where weights are trained, for training fits itself to samples."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.recipe import Recipe
from qcompiler.samples import ACCEPTANCE_MACS, MIN_ACCEPTANCE, model_macs, prepare_samples
from tests.compiling import start
from tests.models import conv_net


@pytest.fixture(scope="module")
def model():
    return start(conv_net()).model


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, image=np.random.default_rng(0).standard_normal((600, 3, 16, 16)).astype(np.float32))
    return str(path)


@pytest.mark.parametrize(("minutes", "accepting"), [(0.0, 32), (1.0, 96)])
def test_training_is_judged_on_more_samples(model, data, minutes, accepting):
    recipe = Recipe(data=data, calibration_samples=448, verify_samples=64, fine_tune_minutes=minutes)
    found = prepare_samples(model, recipe)
    assert len(found.acceptance) == accepting
    assert len(found.calibration) == 448 - accepting
    rows = (found.facts.calibration, found.facts.acceptance, found.facts.verification)
    assert len({row for part in rows for row in part}) == 448 + 64


@pytest.mark.parametrize(("minutes", "accepting"), [(0.0, MIN_ACCEPTANCE), (1.0, 4 * MIN_ACCEPTANCE)])
def test_large_models_are_judged_on_few(model, data, minutes, accepting, monkeypatch):
    monkeypatch.setattr("qcompiler.samples.ACCEPTANCE_MACS", MIN_ACCEPTANCE * model_macs(model))
    assert model_macs(model) < ACCEPTANCE_MACS
    recipe = Recipe(data=data, calibration_samples=448, verify_samples=64, fine_tune_minutes=minutes)
    assert len(prepare_samples(model, recipe).acceptance) == accepting
