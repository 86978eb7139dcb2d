# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Measure diarization: error rates by condition, and the settings of a model, learnt on conversations.

Error rates are those of pyannote.metrics, without a collar and with overlaps, over the whole recordings or the regions
that a UEM file names. Turns of one speaker that overlap each other are one turn, which pyannote.metrics counts twice.
"""

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ..audio import SAMPLING_RATE
from ..diarization import DiarizationSettings, Evidence, decide, listen, listener
from ..enrolment import enrol
from ..long_audio import run
from .conversations import Conversations, Recording
from .diarizers import Diarizer
from .references import Turns, merge_turns

OVERLAP_BOUNDS = (0.05, 0.2)
"""Shares of overlap, of the speech of a recording, between its conditions."""

ENROLMENT_SECONDS = 10.0

COUNT_WEIGHT = 0.02
"""What each speaker too many or too few in a recording counts for `fit_settings`, as a diarization error rate."""

CHUNKS = (3.0, 5.0)
"""Lengths of chunks, in seconds, that `fit_settings` tries. Neighbours overlap by half. Fewer people speak in a short
chunk; a long one tells more of a voice."""

GRID: dict[str, tuple[float, ...]] = {
    "threshold": tuple(np.arange(0.2, 1.01, 0.05).round(2).tolist()),
    "overlap_weight": (0.0, 0.25, 0.5, 1.0),
    "apart": (0.0, 0.2, 0.4, 0.7, 1.0, 2.0),
    "min_slot_seconds": (0.2, 0.5, 0.8, 1.2, 1.6),
    "min_speaker_seconds": (0.3, 0.6, 1.0, 1.5, 2.0, 3.0, 4.0),
    "onset": (0.3, 0.4, 0.5, 0.6, 0.7),
    "offset": (0.2, 0.3, 0.4, 0.5, 0.6),
    "min_pause_seconds": (0.0, 0.1, 0.2, 0.3, 0.5),
    "min_turn_seconds": (0.0, 0.1, 0.2, 0.3, 0.5),
}
"""Values that `fit_settings` tries."""


@dataclass
class Errors:
    """What a diarizer does wrong in one recording. Times are in seconds.

    Attributes:
        speech: of all speakers of the reference together; the diarization error rate is the sum of the next three,
            divided by it.
        missed, false_alarm, confusion: speech of a speaker that is not found, is found without being there, or is
            given to another.
        jaccard, num_speakers: sum over the speakers of the reference of their Jaccard errors, and their number. Those
            who do not speak in what is scored do not count.
        num_found: speakers that were found in what is scored.
        seconds: of the recording, also where a part of it is scored.
        cpu_seconds: of processor time.
    """

    speech: float
    missed: float
    false_alarm: float
    confusion: float
    jaccard: float
    num_speakers: int
    num_found: int
    seconds: float
    cpu_seconds: float


def score(recording: Recording, waveform: np.ndarray, turns: Turns, cpu_seconds: float) -> Errors:
    """Errors of what a diarizer has found in a recording.

    Raises:
        ImportError: pyannote.metrics cannot be imported.
        ValueError: nothing of the recording is scored.
    """
    from pyannote.core import Annotation, Segment, Timeline
    from pyannote.metrics.diarization import DiarizationErrorRate, JaccardErrorRate

    seconds = len(waveform) / SAMPLING_RATE
    regions = [(0.0, seconds)] if recording.scored is None else recording.scored
    scored = [(start, min(end, seconds)) for start, end in regions if start < seconds]
    if not scored:
        raise ValueError(
            f"nothing of the recording {recording.name!r} is scored: its UEM begins after its {seconds:g} s"
        )

    def annotation(of: Turns) -> Annotation:
        result = Annotation()
        for number, (start, end, speaker) in enumerate(merge_turns(of, scored)):
            result[Segment(start, end), number] = speaker
        return result

    pair = annotation(recording.reference), annotation(turns)
    extent = Timeline(Segment(*region) for region in scored)
    parts = DiarizationErrorRate()(*pair, uem=extent, detailed=True)
    jaccard = JaccardErrorRate()(*pair, uem=extent, detailed=True)
    return Errors(
        speech=parts["total"],
        missed=parts["missed detection"],
        false_alarm=parts["false alarm"],
        confusion=parts["confusion"],
        jaccard=jaccard["speaker error"],
        num_speakers=round(jaccard["speaker count"]),
        num_found=len(pair[1].labels()),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
    )


def evaluate(
    recordings: Iterable[Recording], diarizers: Mapping[str, Diarizer]
) -> tuple[list[Recording], dict[str, list[Errors]]]:
    """Let all diarizers hear all recordings.

    Returns:
        The recordings; for each diarizer its errors in each of them.
    """
    heard: list[Recording] = []
    errors: dict[str, list[Errors]] = {name: [] for name in diarizers}
    for recording in recordings:
        waveform = recording.load()
        heard.append(recording)
        for name, diarizer in diarizers.items():
            before = time.process_time()
            turns = diarizer(waveform)
            errors[name].append(score(recording, waveform, turns, time.process_time() - before))
    return heard, errors


def conditions_of(recording: Recording) -> list[str]:
    """The conditions that a recording belongs to, according to the scored part of its reference."""
    if not recording.num_speakers:
        return ["all", "0 speakers"]
    low, high = (f"{100 * bound:g} %" for bound in OVERLAP_BOUNDS)
    number = int(np.searchsorted(OVERLAP_BOUNDS, recording.overlap, side="right"))
    overlap = (f"overlap < {low}", f"overlap {low} to {high}", f"overlap ≥ {high}")[number]
    return ["all", f"{recording.num_speakers} speakers", overlap]


def summarise(errors: Sequence[Errors], num_resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Error rates over several recordings, as fractions, with 95 % intervals by a bootstrap over the recordings.

    Recordings in which nobody speaks have no share in the rates, since these are divided by speech. They are counted
    apart: `without_speech`, and `alarms`, in how many of them somebody is found. Where there is no other recording,
    the rates are 1 if somebody is found and else 0.
    """
    columns = {name: np.array([getattr(one, name) for one in errors], float) for name in asdict(errors[0])}
    speech = columns["speech"] > 0
    alarms = ~speech & (columns["false_alarm"] > 0)

    def rates(drawn: np.ndarray) -> dict[str, float]:
        of = {name: values[drawn] for name, values in columns.items()}
        off = np.abs(of["num_found"] - of["num_speakers"])
        count = {"count_error": off.mean(), "count_right": (off == 0).mean()}
        if not speech[drawn].any():
            wrong = float(alarms[drawn].any())
            return {"der": wrong, "missed": 0.0, "false_alarm": wrong, "confusion": 0.0, "jer": wrong, **count}
        heard = drawn[speech[drawn]]
        of = {name: values[heard].sum() for name, values in columns.items()}
        parts = {name: of[name] / of["speech"] for name in ("missed", "false_alarm", "confusion")}
        return {"der": sum(parts.values()), **parts, "jer": of["jaccard"] / of["num_speakers"], **count}

    everything = np.arange(len(errors))
    rng = np.random.default_rng(seed)
    draws = [rates(rng.choice(everything, len(everything))) for _ in range(num_resamples)]
    intervals = {
        f"{name}_interval": np.percentile([draw[name] for draw in draws], (2.5, 97.5)).tolist()
        for name in ("der", "jer", "count_right")
        if draws
    }
    found = {name: float(value) for name, value in rates(everything).items()}
    speed = columns["seconds"].sum() / max(columns["cpu_seconds"].sum(), 1e-9)
    apart = {"without_speech": int((~speech).sum()), "alarms": int(alarms.sum())}
    return {"recordings": len(errors), **apart, **found, **intervals, "times_real_time": float(speed)}


def summarise_by_condition(
    recordings: Sequence[Recording], errors: Mapping[str, Sequence[Errors]], num_resamples: int = 1000
) -> dict[str, dict[str, Any]]:
    """For each diarizer and each condition, what `summarise` returns."""
    members: dict[str, list[int]] = {}
    for number, recording in enumerate(recordings):
        for condition in conditions_of(recording):
            members.setdefault(condition, []).append(number)
    ordered = sorted(
        members, key=lambda name: (name != "all", not name[0].isdigit(), "≥" in name, "<" not in name, name)
    )
    return {
        name: {
            condition: summarise([of_diarizer[number] for number in members[condition]], num_resamples)
            for condition in ordered
        }
        for name, of_diarizer in errors.items()
    }


def format_report(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Plain tables of what `summarise_by_condition` returns: one for each condition, a line a diarizer, in %."""
    lines = []
    for condition in next(iter(results.values())):
        first = next(iter(results.values()))[condition]
        headings = [
            "",
            "DER",
            "missed",
            "false alarm",
            "confusion",
            "JER",
            "count right",
            "count off by",
            "× real time",
        ]
        rows = [[*headings, *["alarms without speech"] * bool(first["without_speech"])]]
        for name, of_diarizer in results.items():
            of = of_diarizer[condition]
            low, high = of.get("der_interval", (None, None))
            der = f"{100 * of['der']:.1f}" + ("" if low is None else f" ({100 * low:.1f}-{100 * high:.1f})")
            parts = [f"{100 * of[part]:.1f}" for part in ("missed", "false_alarm", "confusion", "jer")]
            count = [f"{100 * of['count_right']:.0f}", f"{of['count_error']:.2f}"]
            alarms = [f"{of['alarms']} of {of['without_speech']}"] * bool(of["without_speech"])
            rows.append([name, der, *parts, *count, f"{of['times_real_time']:.0f}", *alarms])
        lines += [f"{condition}, {first['recordings']} recordings", _table(rows), ""]
    return "\n".join(lines)


# --- settings --------------------------------------------------------------------------------------------------------


def fit_settings(
    model: Any, conversations: Conversations, start: DiarizationSettings | None = None
) -> DiarizationSettings:
    """Learn the settings of a model on conversations of people who are in no test.

    For each length in `CHUNKS`, values of `GRID` are tried, one setting after the other, in two rounds. What is kept
    has the lowest diarization error rate, in frames of the model, to which `COUNT_WEIGHT` adds how far the numbers of
    speakers are off.

    Args:
        model: with frame activity, in evaluation mode.
        conversations: at least one.
        start: the values of the first round.
    """
    best: tuple[tuple[float, float], DiarizationSettings] | None = None
    for seconds in CHUNKS:
        settings = replace(start or DiarizationSettings(), chunk_seconds=seconds, overlap_seconds=seconds / 2)
        heard = [_hear(model, recording, settings) for recording in conversations]
        cost, settings = _search(heard, settings)
        if best is None or cost < best[0]:
            names = _fit_names(model, conversations, heard, settings)
            best = cost, replace(settings, name_threshold=names, error_rate=cost[1])
    assert best is not None  # there are chunks
    return replace(best[1], conversations_sha256=conversations.sha256)


def _search(
    heard: Sequence[tuple[Evidence, np.ndarray, list[str]]], settings: DiarizationSettings
) -> tuple[tuple[float, float], DiarizationSettings]:
    """The best settings in `GRID`, with their cost: that which is minimised, and the error rate."""

    def cost(tried: DiarizationSettings) -> tuple[float, float]:
        wrong = speech = miscounted = 0.0
        for evidence, reference, _ in heard:
            _, active, found = decide(evidence, tried)
            wrong += frame_errors(reference, active)
            speech += reference.sum()
            miscounted += abs(found.num_speakers - int(reference.any(axis=1).sum()))
        rate = float(wrong) / max(float(speech), 1.0)
        return rate + COUNT_WEIGHT * miscounted / len(heard), rate

    best = cost(settings)
    for _, (name, values) in itertools.product(range(2), GRID.items()):
        for value in values:
            if (name == "offset" and value > settings.onset) or (name == "onset" and value < settings.offset):
                continue
            tried = replace(settings, **dict[str, Any]({name: value}))
            if (found := cost(tried)) < best:
                settings, best = tried, found
    return best, settings


def frame_errors(reference: np.ndarray, found: np.ndarray) -> float:
    """Errors, in frames, with the best pairs of speakers: missed, false alarm and confusion together.

    Args:
        reference, found: who speaks, bool (speakers, frames), with as many frames.
    """
    from scipy.optimize import linear_sum_assignment

    common = reference.astype(np.float32) @ found.T.astype(np.float32)
    right = common[linear_sum_assignment(-common)].sum()
    return float(np.maximum(reference.sum(axis=0), found.sum(axis=0)).sum() - right)


def _hear(model: Any, recording: Recording, settings: DiarizationSettings) -> tuple[Evidence, np.ndarray, list[str]]:
    """What the model says of a recording; who speaks in each of its frames, bool (speakers, frames); their names."""
    job = listen(model, recording.load(), settings.chunk_seconds, settings.overlap_seconds)
    evidence = run(listener(model), [job])[0]
    names = list(dict.fromkeys(speaker for _, _, speaker in recording.reference))
    reference = np.zeros((len(names), evidence.num_frames), dtype=bool)
    for start, end, speaker in recording.reference:
        first, behind = (round(moment / evidence.frame_seconds) for moment in (start, end))
        reference[names.index(speaker), first:behind] = True
    return evidence, reference, names


def _fit_names(
    model: Any,
    conversations: Conversations,
    heard: Sequence[tuple[Evidence, np.ndarray, list[str]]],
    settings: DiarizationSettings,
) -> float:
    """The cosine with the fewest errors between speakers that were found and the enrolments of the people in the
    conversations, from speech that is in none: half of the false accepts and false rejects together."""
    used = {piece.utterance for r in conversations.recipes.values() for s in r.sources for piece in s.pieces}
    enrolled: dict[str, np.ndarray] = {}
    for person in sorted(set(conversations.speakers.values())):
        own = [name for name, speaker in conversations.speakers.items() if speaker == person and name not in used]
        if own:
            speech = np.concatenate([conversations.waveforms[name] for name in own])
            enrolled[person] = enrol(model, [speech[: round(ENROLMENT_SECONDS * SAMPLING_RATE)]]).embedding
    scores: list[tuple[float, bool]] = []
    for evidence, reference, people in heard:
        _, active, found = decide(evidence, settings)
        common = reference.astype(np.float32) @ active.T.astype(np.float32)
        for place, embedding in enumerate(found.embeddings.values()):
            best = people[int(common[:, place].argmax())]
            scores += [(float(embedding @ enrolled[name]), name == best) for name in people if name in enrolled]
    targets = np.sort([score for score, is_target in scores if is_target])
    others = np.sort([score for score, is_target in scores if not is_target])
    if not len(targets) or not len(others):
        return settings.name_threshold
    candidates = np.concatenate([targets, others])
    rejects = np.searchsorted(targets, candidates) / len(targets)
    accepts = 1 - np.searchsorted(others, candidates) / len(others)
    return float(candidates[(rejects + accepts).argmin()])


def _table(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )
