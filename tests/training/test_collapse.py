# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
import numpy as np
import pytest
import torch

from csc_hf import CSCConfig, CSCModel
from csc_hf.training.collapse import CollapsedError, CollapseGuard, OverflowGuard, collapse_signs

HEALTHY = {"embedding_rank": 14.0, "uniformity": -0.7, "alignment": 0.4}


def embeddings(spread: float, dimensions: int) -> np.ndarray:
    """(16, 2, 32): unit vectors around one, apart from it by `spread` in some dimensions."""
    vectors = np.zeros((16, 2, 32))
    vectors[..., 0] = 1
    vectors[..., :dimensions] += np.random.default_rng(0).normal(0, spread, (16, 2, dimensions))
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


IDS = np.arange(32).reshape(16, 2) // 4


@pytest.mark.parametrize(
    ("vectors", "sign"),
    [
        (embeddings(0.02, 32), "uniformity is -0.0"),
        (embeddings(3.0, 1), "effective rank is 1.0"),
        (embeddings(1, 32), None),
    ],
)
def test_what_has_collapsed_is_told_from_what_has_not(vectors, sign):
    guard = CollapseGuard(patience=0)
    signs = collapse_signs(vectors, IDS)
    assert signs.keys() == HEALTHY.keys()
    if sign is None:
        return guard.check(1, signs)
    with pytest.raises(CollapsedError, match=f"since step 1 their {sign}.*Remedy: resume .* learning_rate"):
        guard.check(1, signs)


def test_a_new_model_has_not_collapsed():
    torch.manual_seed(0)
    for preset in (CSCConfig.tiny, CSCConfig.small):
        model = CSCModel(preset()).eval()
        with torch.no_grad():
            vectors = model(torch.randn(16, 4000)).source_embeddings.numpy()
        CollapseGuard(patience=0).check(1, collapse_signs(vectors, IDS))


def test_empty_slots_are_left_out():
    vectors, ids = embeddings(1, 32), IDS.copy()
    ids[:, 1] = -100
    vectors[:, 1] = np.nan
    assert all(np.isfinite(list(collapse_signs(vectors, ids).values())))


def test_only_a_collapse_that_lasts_stops_the_run():
    collapsed = HEALTHY | {"embedding_rank": 1.2}
    guard = CollapseGuard(patience=20, first_step=100)
    for step in range(0, 100, 10):
        guard.check(step, collapsed)  # early on it means nothing
    guard.check(100, collapsed)
    guard.check(110, collapsed)
    guard.check(120, HEALTHY)  # it has passed
    guard.check(130, collapsed)
    guard.check(140, collapsed)
    with pytest.raises(CollapsedError, match="since step 130"):
        guard.check(150, collapsed)


def test_a_training_whose_every_step_overflows_ends():
    guard = OverflowGuard()
    for was_updated in [False] * 49 + [True] + [False] * 49:
        guard.check(7, was_updated)
    with pytest.raises(SystemExit, match="50 steps in a row overflowed in float16.*--mixed_precision"):
        guard.check(7, False)
