# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Detect collapsed embeddings, and stop a run whose embeddings stay collapsed."""

import numpy as np

from ..evaluation.metrics import alignment, effective_rank, uniformity

MIN_RANK = 2.0
"""Embeddings of a lower effective rank count as collapsed: they span little more than one direction. A new `small` has
a rank of 14."""

MAX_UNIFORMITY = -0.05
"""Embeddings of a higher uniformity count as collapsed. At this value, the mean squared distance of two embeddings is
about 0.025 (a cosine of 0.99); in a new `small` it is 0.4."""

REMEDY = (
    "resume from an earlier checkpoint with a lower learning_rate, a longer warm-up, a lower "
    "contrastive_loss_weight, or more identities in a batch; if it has been so from the beginning, check that the "
    "mixtures hold different speakers (rows in random order, reservoir_seconds)"
)


def collapse_signs(embeddings: np.ndarray, speaker_ids: np.ndarray) -> dict[str, float]:
    """The `embedding_rank`, `uniformity` and `alignment` of a batch, see `csc_hf.evaluation.metrics`.

    Args:
        embeddings: (mixtures, slots, embedding size), unit vectors, in the order of the speakers.
        speaker_ids: (mixtures, slots); slots with a negative id are empty and left out.
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
    """Raises an error when embeddings have been collapsed for `patience` steps.

    Args:
        patience: steps; training may pass through such a state early on.
        first_step: nothing is checked before this step.

    `since` is the first step of the present collapse, or None.
    """

    def __init__(self, patience: int, first_step: int = 0):
        self.patience = patience
        self.first_step = first_step
        self.since: int | None = None

    def check(self, step: int, signs: dict[str, float]) -> None:
        """Check what `collapse_signs` measured at a step.

        Raises:
            CollapsedError: the embeddings have been collapsed for too long.
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
                f"the speaker embeddings have collapsed: since step {self.since} {found}. They do not tell "
                f"speakers apart. Remedy: {REMEDY}."
            )


class OverflowGuard:
    """Ends a training in float16 whose every step overflows, which would otherwise go on without learning anything.

    Args:
        patience: so many skipped steps in a row are too many. The loss scale is halved by each: 50 take it from 65536
            to far below anything that helps.
    """

    def __init__(self, patience: int = 50):
        self.patience = patience
        self.skipped = 0

    def check(self, step: int, was_updated: bool) -> None:
        """Call after each step, also a skipped one.

        Raises:
            SystemExit: too many steps in a row were skipped.
        """
        self.skipped = 0 if was_updated else self.skipped + 1
        if self.skipped >= self.patience:
            raise SystemExit(
                f"at step {step}, the gradients of {self.skipped} steps in a row overflowed in float16 and the "
                "weights do not change: use --mixed_precision bf16 or no, or lower --learning_rate"
            )
