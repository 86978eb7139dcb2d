# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""What is measured: equal error rate of verification, SI-SDR of separation, signs of collapse. NumPy only."""

import itertools

import numpy as np

# The best permutation is found by trying all of them: 8 slots are 40,320.
MAX_SOURCES = 8


def _error_rates(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False-accept and false-reject rates, each (P + 1,), as the threshold falls past each of the P distinct scores.

    Equal scores are accepted together, so a tie between a target and a non-target is one step of the curve and the
    order of the trials cannot matter.
    """
    scores = np.asarray(scores, dtype=np.float64)
    labels = np.asarray(labels)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise ValueError(
            f"scores and labels must be one-dimensional and of one length, got {scores.shape} and {labels.shape}"
        )
    if np.isnan(scores).any():
        raise ValueError(
            f"scores hold {np.isnan(scores).sum()} NaN, the first at index {np.isnan(scores).argmax()}: "
            "look for NaN in the embeddings that were scored"
        )
    unknown = (labels != 0) & (labels != 1)
    if unknown.any():
        raise ValueError(f"labels must be 1 (target) or 0 (non-target), got {labels[unknown][0]}")
    num_targets = int(np.count_nonzero(labels))
    num_nontargets = labels.size - num_targets
    if not num_targets or not num_nontargets:
        raise ValueError(
            f"error rates need trials of both classes, got {num_targets} target and {num_nontargets} non-target trials"
        )
    order = np.argsort(-scores)
    scores, labels = scores[order], labels[order].astype(bool)
    last_of_tie = np.append(scores[1:] != scores[:-1], True)
    accepted_targets = np.cumsum(labels)[last_of_tie]
    accepted_nontargets = np.cumsum(~labels)[last_of_tie]
    false_accept = np.append(0.0, accepted_nontargets / num_nontargets)
    false_reject = np.append(1.0, 1.0 - accepted_targets / num_targets)
    return false_accept, false_reject


def equal_error_rate(scores: np.ndarray, labels: np.ndarray) -> float:
    """Equal error rate, as a fraction: where the false-accept rate equals the false-reject rate.

    The two ROC points on either side of the crossing are joined by a straight line.

    Args:
        scores: (P,) one score a trial, higher for "same speaker". Only their order matters.
        labels: (P,) 1 or True for a target trial, 0 or False for a non-target trial.

    Raises:
        ValueError: a class is missing, a score is NaN, a label is neither 0 nor 1, or the shapes differ.
    """
    false_accept, false_reject = _error_rates(scores, labels)
    difference = false_accept - false_reject  # rises from -1 (all rejected) to 1 (all accepted)
    after = int(np.argmax(difference >= 0))
    before = after - 1
    share = difference[before] / (difference[before] - difference[after])
    return float(false_accept[before] + share * (false_accept[after] - false_accept[before]))


def _unit_energy(signal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signals (..., T) as float64 with zero mean and unit energy, and which are silent (...); those come back as 0."""
    signal = signal.astype(np.float64)
    if not np.isfinite(signal).all():
        raise ValueError(f"the signal of shape {signal.shape} holds NaN or infinite samples")
    centred = signal - signal.mean(axis=-1, keepdims=True)
    energy = np.square(centred).sum(axis=-1, keepdims=True)
    # Relative to the energy with its mean, since rounding leaves a trace of a constant signal.
    silent = energy <= 1e-20 * np.square(signal).sum(axis=-1, keepdims=True)
    centred = np.where(silent, 0.0, centred / np.sqrt(np.where(silent, 1.0, energy)))
    return centred, silent[..., 0]


def si_sdr(estimate: np.ndarray, reference: np.ndarray, eps: float = 1e-10) -> np.ndarray:
    """Scale-invariant signal-to-distortion ratio in dB, along the last axis (Le Roux et al. 2019, zero mean).

    `eps` is added to the energy of the target part and to that of the rest, both as shares of the estimate's energy.
    So the level of neither signal matters, the result lies within ±100 dB (at 1e-10), and a silent estimate gets the
    lowest value rather than NaN.

    Args:
        estimate: (..., T).
        reference: (..., T); the leading axes are broadcast against those of the estimate.

    Returns:
        (...) in dB.

    Raises:
        ValueError: a reference is silent (nothing to measure against), T differs, or a sample is not finite.
    """
    estimate, reference = np.asarray(estimate), np.asarray(reference)
    if estimate.shape[-1:] != reference.shape[-1:] or not estimate.size:
        raise ValueError(
            "estimate and reference must have one number of samples, at least 1, "
            f"got shapes {estimate.shape} and {reference.shape}"
        )
    estimate, _ = _unit_energy(estimate)
    reference, silent = _unit_energy(reference)
    if silent.any():
        raise ValueError(
            f"reference {np.argwhere(silent)[0].tolist()} of shape {reference.shape} is silent: SI-SDR is "
            "not defined, leave silent sources out"
        )
    target_energy = np.square(np.einsum("...t,...t->...", estimate, reference))
    rest_energy = np.maximum(1.0 - target_energy, 0.0)
    return 10.0 * np.log10((target_energy + eps) / (rest_energy + eps))


def best_permutation(estimates: np.ndarray, references: np.ndarray) -> np.ndarray:
    """The slot of each reference: the assignment with the highest mean SI-SDR.

    Args:
        estimates: (C, T) separated signals, C at most 8 (every assignment is tried).
        references: (R, T) true sources, R <= C; slots beyond R stay unassigned.

    Returns:
        (R,) int: `estimates[result]` is in the order of `references`.

    Raises:
        ValueError: the shapes do not fit, C is above 8, or a reference is silent.
    """
    estimates, references = np.asarray(estimates), np.asarray(references)
    if estimates.ndim != 2 or references.ndim != 2 or not 1 <= len(references) <= len(estimates) <= MAX_SOURCES:
        raise ValueError(
            f"need estimates (C, T) and references (R, T) with 1 <= R <= C <= {MAX_SOURCES}, "
            f"got shapes {estimates.shape} and {references.shape}"
        )
    quality = si_sdr(estimates[:, None], references[None])  # (C, R)
    assignments = np.array(list(itertools.permutations(range(len(estimates)), len(references))))
    return assignments[quality[assignments, np.arange(len(references))].sum(axis=1).argmax()]


def si_sdr_improvement(estimates: np.ndarray, references: np.ndarray, mixture: np.ndarray) -> np.ndarray:
    """SI-SDR of each separated source less that of the mixture itself, under the best permutation.

    Args:
        estimates: (C, T) separated signals in any order, C at most 8.
        references: (R, T) true sources, R <= C, none of them silent.
        mixture: (T,) what the model heard.

    Returns:
        (R,) in dB, in the order of `references`.

    Raises:
        ValueError: as `best_permutation` and `si_sdr`.
    """
    ordered = np.asarray(estimates)[best_permutation(estimates, references)]
    return si_sdr(ordered, references) - si_sdr(mixture, references)


def _check_embeddings(embeddings: np.ndarray) -> np.ndarray:
    embeddings = np.asarray(embeddings, dtype=np.float64)
    if embeddings.ndim != 2 or not embeddings.size:
        raise ValueError(f"embeddings must have shape (P, E), with at least one of them, got {embeddings.shape}")
    if not np.isfinite(embeddings).all():
        raise ValueError(f"embedding {np.argwhere(~np.isfinite(embeddings))[0, 0]} holds NaN or infinite values")
    return embeddings


def _squared_distances(embeddings: np.ndarray) -> np.ndarray:
    """(P, E), unit vectors → (P, P)."""
    embeddings = _check_embeddings(embeddings)
    norms = np.linalg.norm(embeddings, axis=1)
    wrong = np.abs(norms - 1) > 1e-2  # more than half precision explains
    if wrong.any():
        raise ValueError(
            f"embedding {wrong.argmax()} has length {norms[wrong.argmax()]:.3g}, not 1: divide each by its norm"
        )
    squares = np.square(norms)
    return np.maximum(squares[:, None] + squares - 2.0 * embeddings @ embeddings.T, 0.0)


def effective_rank(embeddings: np.ndarray) -> float:
    """Effective rank (Roy and Vetterli 2007): exp of the entropy of the singular values, as shares of their sum.

    The embeddings are not centred: so it falls to 1 as they become alike, and also if they come to lie on one line. It
    is at most min(P, E), reached by orthogonal embeddings of equal length. Their scale does not matter.

    Args:
        embeddings: (P, E).

    Raises:
        ValueError: another shape, no embedding, a value that is not finite, or all are zero.
    """
    singular_values = np.linalg.svd(_check_embeddings(embeddings), compute_uv=False)
    if not singular_values.any():
        raise ValueError("all embeddings are zero: their effective rank is not defined")
    shares = singular_values / singular_values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def uniformity(embeddings: np.ndarray) -> float:
    """Uniformity (Wang and Isola 2020, t = 2): log of the mean of exp(−2 ||x − y||²) over all pairs, whoever speaks.

    The lower, the better they spread over the sphere: 0 where all are alike, never below −8.

    Args:
        embeddings: (P, E), unit vectors.

    Raises:
        ValueError: another shape, fewer than two embeddings, or they are not unit vectors.
    """
    distances = _squared_distances(embeddings)
    if len(distances) < 2:
        raise ValueError(f"uniformity needs at least 2 embeddings, got {len(distances)}")
    return float(np.log(np.exp(-2.0 * distances[np.triu_indices_from(distances, k=1)]).mean()))


def alignment(embeddings: np.ndarray, identities: np.ndarray) -> float:
    """Alignment (Wang and Isola 2020, alpha = 2): mean of ||x − y||² over all pairs of one identity.

    The lower, the more alike are the embeddings of a speaker: 0 to 4. On its own it says nothing, since it is 0 where
    all embeddings are alike.

    Args:
        embeddings: (P, E), unit vectors.
        identities: (P,) integers. Embeddings whose identity is negative are left out.

    Raises:
        ValueError: another shape, not unit vectors, or no identity has two embeddings.
    """
    identities = np.asarray(identities)
    if identities.shape != np.shape(embeddings)[:1]:
        raise ValueError(
            f"need one identity an embedding, got identities {identities.shape} for embeddings {np.shape(embeddings)}"
        )
    distances = _squared_distances(embeddings)
    same = np.triu((identities[:, None] == identities) & (identities >= 0), k=1)
    if not same.any():
        raise ValueError(f"no identity has two embeddings to compare, among {np.count_nonzero(identities >= 0)}")
    return float(distances[same].mean())
