# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Speaker verification, measured by condition: trials → embeddings → scores → error rates.

>>> trials = build_trials(stream_utterances("path/to/held_out"), conditions=list(CONDITIONS))
>>> print(format_report(measure(score_trials(load_embedder("resemblyzer"), trials))))

`csc_hf.evaluation.trials` says what recordings, signals, trials and conditions are, `csc_hf.evaluation.embedders` what is judged here.
"""

import csv
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .. import __version__
from .calibration import Calibration, fit_calibration
from .embedders import CSCEmbedder, Embedder, Slots
from .metrics import (
    RocCurve,
    actual_dcf,
    as_norm,
    best_permutation,
    bootstrap_interval,
    cllr,
    equal_error_rate,
    si_sdr_improvement,
)
from .trials import KINDS, Trials, TrialSet

SIGNALS_AT_A_TIME = 64
"""Signals that an embedder gets at a time; it makes batches of them."""

SCORES_AT_A_TIME = 10_000_000
"""Cosines that are held at a time."""


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of all trials.

    Attributes:
        trials: what was scored.
        scores: by condition, (P,).
        slot_known: by condition, (P,) scores of the slots that separate the target best; None without a separator.
        si_sdr_improvement: by kind of signal, in dB, of all its talkers on average; None where there is one talker,
            more talkers than slots, or no separator.
    """

    trials: TrialSet
    scores: dict[str, np.ndarray]
    slot_known: dict[str, np.ndarray | None]
    si_sdr_improvement: dict[str, float | None]


@dataclass(frozen=True, eq=False)
class _Embedded:
    """What an embedder made of the N signals of one kind.

    Attributes:
        embeddings: (N, C, E) of unit length.
        main_slot: (N, C) True for the most active slot.
        active_slots: (N, C) True for the slots that hold somebody: those whose activity is above one half, or else the
            most active.
        true_slots: (N, C) True for the one slot whose separated source is the target; None without a separator.
        si_sdr_improvement: (N, talkers) in dB; None where it is not measured, see `Scores`.
    """

    embeddings: np.ndarray
    main_slot: np.ndarray
    active_slots: np.ndarray
    true_slots: np.ndarray | None
    si_sdr_improvement: np.ndarray | None


def evaluate(model: torch.nn.Module, trials: TrialSet, batch_size: int = 16, progress: bool = True) -> dict:
    """Error rates of a CSC model (see `CSCEmbedder`) by condition, and how well it separates: what a training watches.

    What `measure` returns for its scores.
    """
    return measure(score_trials(CSCEmbedder(model, batch_size), trials, progress=progress))


def score_trials(
    embedder: Embedder,
    trials: TrialSet,
    enrolment: str = "mean",
    cohort: TrialSet | None = None,
    top_k: int = 100,
    cache_dir: str | os.PathLike | None = None,
    progress: bool = True,
) -> Scores:
    """Embed each signal once, and score all trials.

    A trial's score is the highest cosine between a slot of the enrolment and a slot of the test, of those whose
    activity is above one half, or else the most active: nobody says how many speak. Of an enrolment of one talker, as
    one knows it to be, it is the most active slot. So does the pipeline "speaker-verification".

    "Slot known" scores instead the slot whose separated source is the target under the best permutation, which tells
    poor embeddings from a poor choice of slots. It needs the true sources, so it is a diagnosis and no result.

    Args:
        embedder: See `csc_hf.evaluation.embedders`.
        trials: From `build_trials` or `csc_hf.evaluation.trial_files.read_trials`.
        enrolment: What a test is compared with: the "mean" of the unit embeddings of the enrolment's recordings, or by
            "attention" what they answer to the test's own embedding (`CSCEmbedder.attend`), also a single recording or
            a mixture.
        cohort: Recordings of other speakers, by whose scores those of the trials are normalised (adaptive s-norm, see
            `csc_hf.evaluation.metrics.as_norm`); a member of the cohort is the mean embedding of a speaker. `None`: they are not.
        top_k: Members of the cohort that an enrolment or test is normalised by: the closest; all if there are fewer.
        cache_dir: Folder for embeddings. They are taken from there if embedder and audio are the same. `None`: none.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: an embedding is not finite or zero, a speaker of the cohort is in the trials, the embedder cannot
            be cached, or has no attention.
    """
    if enrolment not in ("mean", "attention"):
        raise ValueError(f'enrolment={enrolment!r}: choose "mean" or "attention"')
    if enrolment == "attention":
        if not hasattr(embedder, "attend"):
            raise ValueError(f'enrolment="attention" needs the cross-attention of CSC, which {embedder} lacks')
    if cohort is not None:
        both = {r.speaker for r in cohort.recordings} & {r.speaker for r in trials.recordings}
        if both:
            raise ValueError(
                f"{len(both)} speakers of the cohort are in the trials, such as {min(both)!r}: take others"
            )
    fingerprint = None
    if cache_dir is not None:
        fingerprint = getattr(embedder, "fingerprint", None)
        if fingerprint is None:
            raise ValueError(f"{embedder} has no fingerprint that tells its embeddings from others: give no cache_dir")

    enrolment_kinds = sorted({condition.kinds[0] for condition in trials.conditions.values()})
    num_enrolments = len(trials.enrolments) * len(enrolment_kinds) if enrolment == "attention" else 0
    total = len(trials.kinds) * len(trials.recordings) + (len(cohort.recordings) if cohort else 0) + num_enrolments
    with tqdm(total=total, desc="verification", unit="signal", disable=not progress) as bar:

        def embed(of: TrialSet, kind: str) -> _Embedded:
            if cache_dir is None:
                return _embed(embedder, of, kind, bar)
            return _embed_or_load(embedder, of, kind, bar, fingerprint, Path(cache_dir))

        embedded = {kind: embed(trials, kind) for kind in trials.kinds}
        members = None if cohort is None else _cohort_members(cohort, embed(cohort, "clean"))
        attended = None
        if enrolment == "attention":
            attended = {kind: _attend(embedder, trials, kind, embedded, members, bar) for kind in enrolment_kinds}

    scores, slot_known = {}, {}
    for name, condition in trials.conditions.items():
        scores[name], slot_known[name] = _score_condition(trials, condition, embedded, attended, members, top_k)
    improvement = {kind: signals.si_sdr_improvement for kind, signals in embedded.items()}
    improvement = {kind: None if values is None else float(values.mean()) for kind, values in improvement.items()}
    return Scores(trials, scores, slot_known, improvement)


# --- embeddings ---------------------------------------------------------------------------------------------------


def _embed(embedder: Embedder, trials: TrialSet, kind: str, bar: tqdm) -> _Embedded:
    """Run the embedder once over all signals of one kind."""
    num_talkers = KINDS[kind].talkers
    embeddings, activity, true_slots, improvement = [], [], [], []
    for start in range(0, len(trials.recordings), SIGNALS_AT_A_TIME):
        numbers = range(start, min(start + SIGNALS_AT_A_TIME, len(trials.recordings)))
        signals, references = zip(*(trials.signal(kind, number) for number in numbers), strict=True)
        slots = embedder(list(signals))
        if not isinstance(slots, Slots):
            slots = Slots(np.asarray(slots)[:, None], np.zeros((len(slots), 1)))
        _check_embeddings(slots.embeddings, [trials.recordings[number].id for number in numbers], kind)
        embeddings.append(_unit(slots.embeddings))
        activity.append(slots.activity)
        for estimates, sources, signal in zip(
            slots.sources or (), references, signals, strict=slots.sources is not None
        ):
            if num_talkers > len(estimates):
                true_slots.append(best_permutation(estimates, sources[:1])[0])
                continue
            true_slots.append(best_permutation(estimates, sources)[0])
            if num_talkers > 1:
                improvement.append(si_sdr_improvement(estimates, sources, signal))
        bar.update(len(numbers))

    activity = np.concatenate(activity)
    slots = np.arange(activity.shape[1])
    main_slot = slots == activity.argmax(axis=1)[:, None]
    return _Embedded(
        embeddings=np.concatenate(embeddings),
        main_slot=main_slot,
        active_slots=main_slot | (activity > 0),  # a logit: above one half
        true_slots=slots == np.array(true_slots)[:, None] if true_slots else None,
        si_sdr_improvement=np.array(improvement) if improvement else None,
    )


def _check_embeddings(embeddings: np.ndarray, names: list[str], kind: str) -> None:
    norms = np.linalg.norm(embeddings, axis=-1).min(axis=1)  # NaN, if any is
    wrong = ~(np.isfinite(embeddings).all(axis=(1, 2)) & (norms > 0))
    if wrong.any():
        raise ValueError(
            f"{wrong.sum()} embeddings are zero, NaN or infinite, the first is of {names[wrong.argmax()]!r} as "
            f"{kind!r}: look into that audio and the embedder"
        )


def _embed_or_load(
    embedder: Embedder, trials: TrialSet, kind: str, bar: tqdm, fingerprint: str, folder: Path
) -> _Embedded:
    """As `_embed`, from the cache if it is there. The file's name is a hash of all that the embeddings depend on."""
    key = f"{__version__} {fingerprint} {trials.signals_sha256(kind)}"
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()}.npz"
    if path.exists():
        with np.load(path) as arrays:
            embedded = _Embedded(**{field: arrays.get(field) for field in _Embedded.__dataclass_fields__})
        bar.update(len(trials.recordings))
        return embedded
    embedded = _embed(embedder, trials, kind, bar)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.unfinished")
    with open(unfinished, "wb") as file:
        np.savez(file, **{field: array for field, array in vars(embedded).items() if array is not None})
    unfinished.rename(path)
    return embedded


def _attend(
    embedder: Embedder,
    trials: TrialSet,
    kind: str,
    embedded: Mapping[str, _Embedded],
    members: np.ndarray | None,
    bar: tqdm,
) -> dict[str, np.ndarray]:
    """Cosines of each enrolment, by signals of one kind, with the slots of all signals, by their kind (G, N, C), and
    with the cohort, "cohort" (G, M): each of them asks the recordings of the enrolment."""
    queries = {kind: of_kind.embeddings for kind, of_kind in embedded.items()}
    if members is not None:
        queries["cohort"] = members
    every_query = np.concatenate([vectors.reshape(-1, vectors.shape[-1]) for vectors in queries.values()])
    cosines = []
    for numbers in trials.enrolments:
        cosines.append(embedder.attend([trials.signal(kind, number)[0] for number in numbers], every_query))
        bar.update(1)
    ends = np.cumsum([vectors[..., 0].size for vectors in queries.values()])
    parts = np.split(np.stack(cosines), ends[:-1], axis=1)
    return {
        name: part.reshape(-1, *vectors.shape[:-1])
        for (name, vectors), part in zip(queries.items(), parts, strict=True)
    }


def _cohort_members(cohort: TrialSet, embedded: _Embedded) -> np.ndarray:
    """(M, E): the mean embedding of each of the cohort's speakers."""
    main = embedded.embeddings[embedded.main_slot]  # (N, E)
    return _unit(np.stack([main[cohort.speakers == speaker].mean(axis=0) for speaker in np.unique(cohort.speakers)]))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


# --- scores -------------------------------------------------------------------------------------------------------


def _score_condition(
    trials: TrialSet,
    condition: Trials,
    embedded: Mapping[str, _Embedded],
    attended: Mapping[str, Mapping[str, np.ndarray]] | None,
    members: np.ndarray | None,
    top_k: int,
) -> tuple[np.ndarray, np.ndarray | None]:
    """The scores (P,) of a condition's trials, and those of the slots known to be the target's."""
    of_enrolment, of_test = condition.kinds
    enrolment, test = embedded[of_enrolment], embedded[of_test]
    answers = None if attended is None else attended[of_enrolment]

    def score(enrolment_slots: np.ndarray, test_slots: np.ndarray) -> np.ndarray:
        if answers is None:
            models, allowed = _combine(enrolment.embeddings, enrolment_slots, trials.enrolments)
            scores = _score(condition, models, allowed, test.embeddings, test_slots)
        else:
            cosines = answers[of_test][condition.enrolment, condition.test]  # (P, C)
            scores = np.where(test_slots[condition.test], cosines, -np.inf).max(axis=1)
        if members is None:
            return scores
        cohort_of_enrolments = _score_cohort(models, allowed, members) if answers is None else answers["cohort"]
        cohort_of_tests = _score_cohort(test.embeddings, test_slots, members)
        top = min(top_k, len(members))
        return as_norm(scores, condition.enrolment, condition.test, cohort_of_enrolments, cohort_of_tests, top)

    one_talker = KINDS[of_enrolment].talkers == 1
    scores = score(enrolment.main_slot if one_talker else enrolment.active_slots, test.active_slots)
    if enrolment.true_slots is None:
        return scores, None
    return scores, score(enrolment.true_slots, test.true_slots)


def _combine(embeddings: np.ndarray, slots: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (N, C, E) and slots (N, C) of signals → those of enrolments from (G, K) of them: if K > 1 with one
    slot, the mean."""
    if groups.shape[1] == 1:
        return embeddings[groups[:, 0]], slots[groups[:, 0]]
    mean = embeddings[slots][groups].mean(axis=1, keepdims=True)  # several recordings have one slot each
    return _unit(mean), np.ones((len(groups), 1), dtype=bool)


def _score(
    condition: Trials, enrolment: np.ndarray, enrolment_slots: np.ndarray, test: np.ndarray, test_slots: np.ndarray
) -> np.ndarray:
    """(P,) the highest cosine of two of the slots, in blocks of enrolments."""
    order = np.argsort(condition.enrolment, kind="stable")
    rows = max(1, SCORES_AT_A_TIME // (test_slots.size * enrolment_slots.shape[1]))
    scores = np.empty(len(order), dtype=np.float32)
    for start in range(0, len(enrolment), rows):
        block = slice(start, start + rows)
        cosine = np.tensordot(enrolment[block], test, axes=(2, 2))  # (rows, C, N, C)
        allowed = enrolment_slots[block, :, None, None] & test_slots
        best = np.where(allowed, cosine, -np.inf).max(axis=(1, 3))
        first, last = np.searchsorted(condition.enrolment, (start, start + rows), sorter=order)
        chosen = order[first:last]
        scores[chosen] = best[condition.enrolment[chosen] - start, condition.test[chosen]]
    return scores


def _score_cohort(embeddings: np.ndarray, slots: np.ndarray, members: np.ndarray) -> np.ndarray:
    """(N, M): the highest cosine of the slots with each member."""
    return np.where(slots[..., None], embeddings @ members.T, -np.inf).max(axis=1)


# --- figures ------------------------------------------------------------------------------------------------------


def calibrate(scores: Scores, p_target: float = 0.5) -> dict[str, Calibration]:
    """A calibration for each condition, learnt on its trials; `store` keeps one in a model's configuration.

    Raises:
        ValueError: see `csc_hf.evaluation.calibration.fit_calibration`.
    """
    return {
        name: fit_calibration(values, scores.trials.conditions[name].is_target, name, scores.trials.sha256, p_target)
        for name, values in scores.scores.items()
    }


def measure(scores: Scores, calibrations: Mapping[str, Calibration] | None = None, num_resamples: int = 0) -> dict:
    """Error rates by condition.

    Args:
        scores: From `score_trials`.
        calibrations: From `calibrate`, on the scores of other speakers, by condition: what log-likelihood ratios are
            computed with. `None`: there are none, and neither `cllr` nor `actual_dcf`.
        num_resamples: Of the speakers, for 95 % confidence intervals (`csc_hf.evaluation.metrics.bootstrap_interval`). 0: none.

    Returns:
        A dict that `json.dumps` takes. Error rates are fractions; where a class has no trial, or the model no
        separator, a figure is None.

    Raises:
        ValueError: there are calibrations, but none for a condition, or one was learnt on these very trials.
    """
    trials = scores.trials
    return {
        "trials_sha256": trials.sha256,
        "seed": trials.seed,
        "seconds": trials.seconds,
        "num_speakers": len(np.unique(trials.speakers)),
        "num_speakers_left_out": len(trials.speakers_left_out),
        "num_recordings": len(trials.recordings),
        "enrolment_recordings": trials.enrolments.shape[1],
        "audio_left_out": trials.audio_left_out,
        "si_sdr_improvement": scores.si_sdr_improvement.get("mix0"),
        "conditions": {name: _measure(scores, name, calibrations, num_resamples) for name in trials.conditions},
    }


def _measure(
    scores: Scores, name: str, calibrations: Mapping[str, Calibration] | None, num_resamples: int
) -> dict[str, float | int | list[float] | None]:
    """Error rates and numbers of trials of one condition."""
    trials, values, slot_known = scores.trials.conditions[name], scores.scores[name], scores.slot_known[name]
    is_target, within = trials.is_target, trials.within_source >= 0
    has_both = bool(is_target.any() and not is_target.all())
    curve = RocCurve.from_scores(values, is_target) if has_both else None
    figures = {
        "eer": curve and curve.equal_error_rate(),
        "eer_interval": None,
        "eer_within_source": _eer_within_source(values, trials),
        "eer_slot_known": None if slot_known is None else _eer(slot_known, is_target),
        "eer_slot_known_within_source": None if slot_known is None else _eer_within_source(slot_known, trials),
        "min_dcf": curve and curve.min_dcf(),
        "retrieval_accuracy": _retrieval_accuracy(values, trials),
        "si_sdr_improvement": scores.si_sdr_improvement[trials.kinds[1]],
        "num_target": int(is_target.sum()),
        "num_nontarget": int((~is_target).sum()),
        "num_target_within_source": int((is_target & within).sum()),
        "num_nontarget_within_source": int((~is_target & within).sum()),
    }
    if num_resamples and has_both:
        speakers = scores.trials.speakers
        of_enrolment = speakers[scores.trials.enrolments[trials.enrolment, 0]]
        figures["eer_interval"] = list(
            bootstrap_interval(values, of_enrolment, speakers[trials.test], num_resamples=num_resamples)
        )
    if calibrations is not None and has_both:
        llrs = _calibration(calibrations, name, scores.trials).llr(values)
        figures |= {
            "cllr": cllr(llrs, is_target),
            "min_cllr": curve.min_cllr(),
            "actual_dcf": actual_dcf(llrs, is_target),
        }
    return figures


def _calibration(calibrations: Mapping[str, Calibration], name: str, trials: TrialSet) -> Calibration:
    if name not in calibrations:
        raise ValueError(
            f"no calibration for condition {name!r}, only for {sorted(calibrations)}: calibrate on it too"
        )
    if calibrations[name].trials_sha256 == trials.sha256:
        raise ValueError(f"the calibration for {name!r} was learnt on these very trials: learn it on other speakers")
    return calibrations[name]


def _eer(scores: np.ndarray, is_target: np.ndarray) -> float | None:
    """Equal error rate, or None where there are no trials of one class and so nothing to measure."""
    return equal_error_rate(scores, is_target) if is_target.any() and not is_target.all() else None


def _retrieval_accuracy(scores: np.ndarray, trials: Trials) -> float | None:
    """Share of the test signals whose best-scoring enrolment is of their speaker, among those with trials of both
    classes (None: there is none). Where both signals are of one kind, each is a test signal of its trials."""
    tests, is_target = trials.test, trials.is_target
    if trials.kinds[0] == trials.kinds[1]:
        tests = np.concatenate([trials.test, trials.enrolment])
        scores, is_target = np.tile(scores, 2), np.tile(is_target, 2)
    best = np.full((2, tests.max(initial=0) + 1), -np.inf)  # of the non-target trials, of the target trials
    np.maximum.at(best, (is_target.astype(int), tests), scores)
    other, target = best[:, np.isfinite(best).all(axis=0)]
    return float((target > other).mean()) if len(target) else None


def _eer_within_source(scores: np.ndarray, trials: Trials) -> float | None:
    """Mean of the sources' equal error rates, weighted by their target trials; None where no source has both classes.

    Each source has a threshold of its own: scores run higher in some channels than in others, and one threshold for
    all would measure that."""
    rates, weights = [], []
    for source in np.unique(trials.within_source[trials.within_source >= 0]):
        of_source = trials.within_source == source
        rate = _eer(scores[of_source], trials.is_target[of_source])
        if rate is not None:
            rates.append(rate)
            weights.append(trials.is_target[of_source].sum())
    return float(np.average(rates, weights=weights)) if rates else None


def write_scores(
    path: str | os.PathLike, scores: Scores, calibrations: Mapping[str, Calibration] | None = None
) -> None:
    """A CSV file with a line a trial: condition, ids of the recordings, whether it is a target, score, and the log-
    likelihood ratio if there are calibrations. The recordings of one enrolment are joined by "|"."""
    trials = scores.trials
    ids = [recording.id for recording in trials.recordings]
    enrolments = ["|".join(ids[number] for number in numbers) for numbers in trials.enrolments]
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["condition", "enrolment", "test", "is_target", "score"] + ["llr"] * (calibrations is not None)
        )
        for name, condition in trials.conditions.items():
            values = scores.scores[name]
            columns = [values.tolist()]
            if calibrations is not None:
                columns.append(_calibration(calibrations, name, trials).llr(values).tolist())
            for i, j, is_target, *numbers in zip(
                condition.enrolment, condition.test, condition.is_target, *columns, strict=True
            ):
                writer.writerow([name, enrolments[i], ids[j], int(is_target), *(f"{n:.6g}" for n in numbers)])
