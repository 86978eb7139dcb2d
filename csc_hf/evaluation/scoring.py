# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""From trials to scores: each signal is embedded once, slots are compared, scores are normalised."""

import csv
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..files import check_folder, writing
from ..version import __version__
from .calibration import Calibration, check_enrolment
from .embedders import CSCEmbedder, Embedder, Slots
from .metrics import as_norm, best_permutation, si_sdr_improvement
from .trial_set import KINDS, Trials, TrialSet

SIGNALS_AT_A_TIME = 64
"""Signals that are built and given to an embedder at a time."""

TRIALS_AT_A_TIME = 1000
"""Trials whose embeddings are compared at a time. More of them do not fit the cache of a processor."""


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of all trials.

    Attributes:
        trials: The trials that were scored.
        scores: By condition, (trials,).
        slot_known: By condition, (trials,) scores of the slots that separate the target best; None without a
            separator.
        si_sdr_improvement: By kind of signal, in dB, mean over all talkers; None where there is one talker, more
            talkers than slots, or no separator.
        enrolment: How speakers were enrolled, one of `csc_hf.evaluation.calibration.ENROLMENTS`.
    """

    trials: TrialSet
    scores: dict[str, np.ndarray]
    slot_known: dict[str, np.ndarray | None]
    si_sdr_improvement: dict[str, float | None]
    enrolment: str = "mean"


@dataclass(frozen=True, eq=False)
class _Embedded:
    """The embeddings of all signals of one kind.

    Attributes:
        embeddings: (signals, slots, embedding) of unit length.
        main_slot: (signals, slots) True for the most active slot.
        active_slots: (signals, slots) True for the slots whose activity is above one half, and for the most active.
        true_slots: (signals, slots) True for the one slot whose separated source is the target; None without a
            separator.
        si_sdr_improvement: (signals, talkers) in dB; None where it is not measured, see `Scores`.
    """

    embeddings: np.ndarray
    main_slot: np.ndarray
    active_slots: np.ndarray
    true_slots: np.ndarray | None
    si_sdr_improvement: np.ndarray | None


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

    The score of a trial is the highest cosine between a slot of the enrolment and a slot of the test. The active slots
    take part: those whose activity is above one half, or else the most active one. An enrolment of one talker has one
    slot, the most active one. The pipeline "speaker-verification" scores in the same way.

    The "slot known" scores compare instead the slots whose separated source is the target, under the best permutation.
    They tell poor embeddings from a poor choice of slots. They need the true sources, so they are a diagnosis and no
    result.

    Args:
        embedder: See `csc_hf.evaluation.embedders`.
        trials: From `build_trials` or `csc_hf.evaluation.trial_files.read_trials`.
        enrolment: "mean" compares a test with the mean of the embeddings of the enrolment's recordings. "attention"
            compares it with what the cross-attention of `CSCForPreTraining` answers to the embedding of the test
            (`CSCEmbedder.attend`), also for a single recording or a mixture. "scorer" asks a
            `CSCForSpeakerVerification` whether the mean of the enrolment speaks in the test (`CSCEmbedder.score`); the
            score is its logit.
        cohort: Recordings of other speakers for adaptive s-norm (`csc_hf.evaluation.metrics.as_norm`). A member of the
            cohort is the mean embedding of a speaker. `None`: scores are not normalised.
        top_k: Number of closest members of the cohort that normalise a score; all if there are fewer.
        cache_dir: Folder that keeps embeddings. They are read from there if embedder and audio are the same.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: An embedding is not finite or zero, a speaker of the cohort is in the trials, the embedder has no
            fingerprint to be cached by, or it has no cross-attention or scorer; or a scorer has a cohort.
    """
    check_enrolment(enrolment)
    if enrolment == "attention":
        if not isinstance(embedder, CSCEmbedder):
            raise ValueError(f'enrolment="attention" needs the cross-attention of CSC, which {embedder} lacks')
        embedder.check_attention()
    if enrolment == "scorer":
        if not isinstance(embedder, CSCEmbedder):
            raise ValueError(f'enrolment="scorer" needs a CSCForSpeakerVerification, and {embedder} is none')
        embedder.check_scorer()
        if cohort is not None:
            raise ValueError('enrolment="scorer" gives logits, which no cohort normalises: leave the cohort out')
    if cohort is not None:
        both = {str(r.speaker) for r in cohort.recordings} & {str(r.speaker) for r in trials.recordings}
        if both:
            raise ValueError(
                f"{len(both)} speakers of the cohort are in the trials, such as {min(both)!r}: take others"
            )
    fingerprint = getattr(embedder, "fingerprint", None)
    if cache_dir is not None and fingerprint is None:
        raise ValueError(f"{embedder} has no fingerprint that tells its embeddings from others: give no cache_dir")

    total = len(trials.kinds) * len(trials.recordings) + (len(cohort.recordings) if cohort else 0)
    enrolment_kinds = sorted({condition.kinds[0] for condition in trials.conditions.values()})
    if enrolment == "attention":
        total += len(enrolment_kinds) * len(trials.enrolments)
    if enrolment == "scorer":
        total += sum(len(np.unique(condition.test)) for condition in trials.conditions.values())
    with tqdm(total=total, desc="verification", unit="signal", disable=not progress) as bar:

        def embed(of: TrialSet, kind: str) -> _Embedded:
            if cache_dir is None:
                return _embed(embedder, of, kind, bar)
            return _embed_or_load(embedder, of, kind, bar, str(fingerprint), Path(cache_dir))

        embedded = {kind: embed(trials, kind) for kind in trials.kinds}
        members = None if cohort is None else _cohort_members(cohort, embed(cohort, "clean"))
        attended = None
        if enrolment == "attention":
            assert isinstance(embedder, CSCEmbedder)  # checked above
            attended = {kind: _attend(embedder, trials, kind, embedded, members, bar) for kind in enrolment_kinds}
        scores: dict[str, np.ndarray] = {}
        slot_known: dict[str, np.ndarray | None] = {}
        for name, condition in trials.conditions.items():
            if enrolment == "scorer":
                assert isinstance(embedder, CSCEmbedder)  # checked above
                scores[name], slot_known[name] = _judge(embedder, trials, condition, embedded, bar), None
                continue
            answers = None
            if attended is not None:
                of_conditions, of_cohort = attended[condition.kinds[0]]
                answers = of_conditions[name], of_cohort
            scores[name], slot_known[name] = _score_condition(trials, condition, embedded, answers, members, top_k)
    improvement = {
        kind: None if signals.si_sdr_improvement is None else float(signals.si_sdr_improvement.mean())
        for kind, signals in embedded.items()
    }
    return Scores(trials, scores, slot_known, improvement, enrolment)


def write_scores(
    path: str | os.PathLike, scores: Scores, calibrations: Mapping[str, Calibration] | None = None
) -> None:
    """Write a CSV file with a line a trial: condition, ids of the recordings, whether it is a target, and score.

    The ids of an enrolment of several recordings are joined by "|". With `calibrations`, one for each condition, there
    is a column of log-likelihood ratios.
    """
    trials = scores.trials
    ids = [recording.id for recording in trials.recordings]
    enrolments = ["|".join(ids[number] for number in numbers) for numbers in trials.enrolments]
    with writing(path) as unfinished, open(unfinished, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["condition", "enrolment", "test", "is_target", "score"] + ["llr"] * (calibrations is not None)
        )
        for name, condition in trials.conditions.items():
            values = scores.scores[name]
            columns = [values.tolist()]
            if calibrations is not None:
                columns.append(calibrations[name].llr(values).tolist())
            for i, j, is_target, *numbers in zip(
                condition.enrolment, condition.test, condition.is_target, *columns, strict=True
            ):
                writer.writerow([name, enrolments[i], ids[j], int(is_target), *(f"{n:.6g}" for n in numbers)])


# --- embeddings ---------------------------------------------------------------------------------------------------


def _embed(embedder: Embedder, trials: TrialSet, kind: str, bar: tqdm) -> _Embedded:
    """Run the embedder once over all signals of one kind."""
    num_talkers = KINDS[kind].talkers
    embeddings, activities, true_slots, improvement = [], [], [], []
    for start in range(0, len(trials.recordings), SIGNALS_AT_A_TIME):
        numbers = range(start, min(start + SIGNALS_AT_A_TIME, len(trials.recordings)))
        signals, references = zip(*(trials.signal(kind, number) for number in numbers), strict=True)
        slots = embedder(list(signals))
        if not isinstance(slots, Slots):
            slots = Slots(np.asarray(slots)[:, None], np.zeros((len(slots), 1)))
        _check_embeddings(slots.embeddings, [trials.recordings[number].id for number in numbers], kind)
        embeddings.append(_unit(slots.embeddings))
        activities.append(slots.activity)
        if slots.sources is not None:
            for estimates, sources, signal in zip(slots.sources, references, signals, strict=True):
                if num_talkers > len(estimates):
                    true_slots.append(best_permutation(estimates, sources[:1])[0])
                    continue
                true_slots.append(best_permutation(estimates, sources)[0])
                if num_talkers > 1:
                    improvement.append(si_sdr_improvement(estimates, sources, signal))
        bar.update(len(numbers))

    activity = np.concatenate(activities)
    slot_numbers = np.arange(activity.shape[1])
    main_slot = slot_numbers == activity.argmax(axis=1)[:, None]
    return _Embedded(
        embeddings=np.concatenate(embeddings),
        main_slot=main_slot,
        active_slots=main_slot | (activity > 0),  # a logit: above one half
        true_slots=slot_numbers == np.array(true_slots)[:, None] if true_slots else None,
        si_sdr_improvement=np.array(improvement) if improvement else None,
    )


def _check_embeddings(embeddings: np.ndarray, names: list[str], kind: str) -> None:
    norms = np.linalg.norm(embeddings, axis=-1).min(axis=1)  # NaN, if any is
    wrong = ~(np.isfinite(embeddings).all(axis=(1, 2)) & (norms > 0))
    if wrong.any():
        raise ValueError(
            f"{wrong.sum()} embeddings are zero, NaN or infinite, the first is of {names[wrong.argmax()]!r} as "
            f"{kind!r}: check that audio and the embedder"
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
    check_folder(folder)
    embedded = _embed(embedder, trials, kind, bar)
    with writing(path) as unfinished:
        np.savez(unfinished, **{field: array for field, array in vars(embedded).items() if array is not None})
    return embedded


def _attend(
    embedder: CSCEmbedder,
    trials: TrialSet,
    kind: str,
    embedded: Mapping[str, _Embedded],
    members: np.ndarray | None,
    bar: tqdm,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Cosines of the enrolments, by signals of one kind, with the tests of their trials and with the cohort.

    Returns:
        For each condition with such enrolments (trials, slots of the test); and (enrolments, members).
    """
    conditions = {name: of for name, of in trials.conditions.items() if of.kinds[0] == kind}
    places = {name: _places(of.enrolment, len(trials.enrolments)) for name, of in conditions.items()}
    cosines = {
        name: np.empty((len(of.test), embedded[of.kinds[1]].embeddings.shape[1]), dtype=np.float32)
        for name, of in conditions.items()
    }
    of_cohort = np.empty((len(trials.enrolments), 0 if members is None else len(members)), dtype=np.float32)
    for number, recordings in enumerate(trials.enrolments):
        bar.update(1)
        # A condition's trials of this enrolment, and the slots of their tests.
        asked = {name: places[name][number] for name in conditions}
        slots = [embedded[of.kinds[1]].embeddings[of.test[asked[name]]] for name, of in conditions.items()]
        queries = [vectors.reshape(-1, vectors.shape[-1]) for vectors in slots]
        everything = np.concatenate(queries if members is None else [*queries, members])
        if not len(everything):
            continue
        answers = embedder.attend([trials.signal(kind, recording)[0] for recording in recordings], everything)
        *parts, of_cohort[number] = np.split(answers, np.cumsum([len(vectors) for vectors in queries]))
        for name, part, vectors in zip(conditions, parts, slots, strict=True):
            cosines[name][asked[name]] = part.reshape(vectors.shape[:2])
    return cosines, of_cohort


def _judge(
    embedder: CSCEmbedder, trials: TrialSet, condition: Trials, embedded: Mapping[str, _Embedded], bar: tqdm
) -> np.ndarray:
    """(trials,): logits of the trials of a condition. Of an enrolment that is a mixture, the highest of its slots."""
    of_enrolment, of_test = condition.kinds
    slots = _enrolled_slots(of_enrolment, embedded)
    models, allowed = _combine(embedded[of_enrolment].embeddings, slots, trials.enrolments)
    logits = np.empty(len(condition.test), dtype=np.float32)
    for number, asked in enumerate(_places(condition.test, len(trials.recordings))):
        if not len(asked):
            continue
        enrolled = condition.enrolment[asked]
        of_slots = np.full(allowed[enrolled].shape, -np.inf, dtype=np.float32)
        queries = models[enrolled][allowed[enrolled]]
        of_slots[allowed[enrolled]] = embedder.score(trials.signal(of_test, number)[0], queries)
        logits[asked] = of_slots.max(axis=1)
        bar.update(1)
    return logits


def _places(numbers: np.ndarray, count: int) -> list[np.ndarray]:
    """For each number below `count`, where it stands in `numbers`."""
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.searchsorted(numbers[order], np.arange(1, count)))


def _enrolled_slots(kind: str, embedded: Mapping[str, _Embedded]) -> np.ndarray:
    """(signals, slots) True for the slots that enrol somebody: of one talker, the most active one."""
    return embedded[kind].main_slot if KINDS[kind].talkers == 1 else embedded[kind].active_slots


def _cohort_members(cohort: TrialSet, embedded: _Embedded) -> np.ndarray:
    """(speakers, embedding): the mean embedding of each speaker of the cohort."""
    main = embedded.embeddings[embedded.main_slot]  # (recordings, embedding)
    return _unit(np.stack([main[cohort.speakers == speaker].mean(axis=0) for speaker in np.unique(cohort.speakers)]))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


# --- scores -------------------------------------------------------------------------------------------------------


def _score_condition(
    trials: TrialSet,
    condition: Trials,
    embedded: Mapping[str, _Embedded],
    answers: tuple[np.ndarray, np.ndarray] | None,
    members: np.ndarray | None,
    top_k: int,
) -> tuple[np.ndarray, np.ndarray | None]:
    """The scores (trials,) of a condition, and those of the slots known to be the target's.

    `answers` are those of the cross-attention: the cosines of the condition's trials, and of the cohort (`_attend`).
    """
    of_enrolment, of_test = condition.kinds
    enrolment, test = embedded[of_enrolment], embedded[of_test]

    def score(enrolment_slots: np.ndarray, test_slots: np.ndarray) -> np.ndarray:
        if answers is None:
            models, allowed = _combine(enrolment.embeddings, enrolment_slots, trials.enrolments)
            scores = _score(condition, models, allowed, test.embeddings, test_slots)
        else:
            scores = np.where(test_slots[condition.test], answers[0], -np.inf).max(axis=1)
        if members is None:
            return scores
        cohort_of_enrolments = _score_cohort(models, allowed, members) if answers is None else answers[1]
        cohort_of_tests = _score_cohort(test.embeddings, test_slots, members)
        top = min(top_k, len(members))
        return as_norm(scores, condition.enrolment, condition.test, cohort_of_enrolments, cohort_of_tests, top)

    scores = score(_enrolled_slots(of_enrolment, embedded), test.active_slots)
    if enrolment.true_slots is None or test.true_slots is None:
        return scores, None
    return scores, score(enrolment.true_slots, test.true_slots)


def _combine(embeddings: np.ndarray, slots: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (signals, slots, embedding) and slots (signals, slots) of signals → those of the enrolments, whose
    signals are the rows of `groups`. Several signals of an enrolment give one slot, the mean."""
    if groups.shape[1] == 1:
        return embeddings[groups[:, 0]], slots[groups[:, 0]]
    mean = embeddings[slots][groups].mean(axis=1, keepdims=True)  # several recordings have one slot each
    return _unit(mean), np.ones((len(groups), 1), dtype=bool)


def _score(
    condition: Trials, enrolment: np.ndarray, enrolment_slots: np.ndarray, test: np.ndarray, test_slots: np.ndarray
) -> np.ndarray:
    """(trials,) the highest cosine of two of the slots. Only pairs on the list are compared."""
    scores = np.empty(len(condition.test), dtype=np.float32)
    for start in range(0, len(scores), TRIALS_AT_A_TIME):
        block = slice(start, start + TRIALS_AT_A_TIME)
        models, tests = condition.enrolment[block], condition.test[block]
        cosine = enrolment[models] @ test[tests].swapaxes(1, 2)  # (trials, slots, slots)
        allowed = enrolment_slots[models][:, :, None] & test_slots[tests][:, None]
        scores[block] = np.where(allowed, cosine, -np.inf).max(axis=(1, 2))
    return scores


def _score_cohort(embeddings: np.ndarray, slots: np.ndarray, members: np.ndarray) -> np.ndarray:
    """(signals, members): the highest cosine of the slots with each member."""
    return np.where(slots[..., None], embeddings @ members.T, -np.inf).max(axis=1)
