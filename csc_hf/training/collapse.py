# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Signs that embeddings collapse, and a guard that ends a run which would only go on wasting time."""

import numpy as np

from ..evaluation.metrics import alignment, effective_rank, uniformity

MIN_RANK = 2.0
"""Effective rank below which embeddings count as collapsed: hardly more than one direction. A new `small` has 14."""

MAX_UNIFORMITY = -0.05
"""Uniformity above which they do: the mean squared distance of two embeddings is then about 0.025 (a cosine of 0.99);
of a new `small` it is 0.4."""

REMEDY = (
    "resume from a checkpoint before that with a lower learning_rate or a longer warm-up, a lower "
    "contrastive_loss_weight, or more identities in a batch; if it has been so from the beginning, look whether the "
    "mixtures hold different speakers (rows in random order, reservoir_seconds)"
)


def collapse_signs(embeddings: np.ndarray, speaker_ids: np.ndarray) -> dict[str, float]:
    """`embedding_rank`, `uniformity` and `alignment` of a batch, see `metrics`.

    Args:
        embeddings: (B, C, E), unit vectors, in the order of the speakers.
        speaker_ids: (B, C); slots with a negative one hold nobody and are left out.
    """
    known = speaker_ids >= 0
    embeddings, speaker_ids = embeddings[known], speaker_ids[known]
    return {
        "embedding_rank": effective_rank(embeddings),
        "uniformity": uniformity(embeddings),
        "alignment": alignment(embeddings, speaker_ids),
    }


class CollapsedError(RuntimeError):
    """The embeddings have collapsed; the message names the sign and the remedy."""


class CollapseGuard:
    """Raises when embeddings have been collapsed for `patience` steps.

    Args:
        patience: steps; an early phase of training may pass through such a state.
        first_step: nothing is judged before.

    `since` is the first step of a collapse that lasts, or None.
    """

    def __init__(self, patience: int, first_step: int = 0):
        self.patience = patience
        self.first_step = first_step
        self.since: int | None = None

    def check(self, step: int, signs: dict[str, float]) -> None:
        """Judge what `collapse_signs` measured at a step.

        Raises:
            CollapsedError: it has been so for too long.
        """
        found = None
        if signs["embedding_rank"] < MIN_RANK:
            found = f"their effective rank is {signs['embedding_rank']:.2f}, below {MIN_RANK:g}: all lie on one line"
        elif signs["uniformity"] > MAX_UNIFORMITY:
            found = f"their uniformity is {signs['uniformity']:.3f}, above {MAX_UNIFORMITY:g}: all lie at one point"
        if found is None or step < self.first_step:
            self.since = None
            return
        self.since = step if self.since is None else self.since
        if step - self.since >= self.patience:
            raise CollapsedError(
                f"the speaker embeddings have collapsed: since step {self.since} {found}. No speaker can be told "
                f"from another by them. Remedy: {REMEDY}."
            )
