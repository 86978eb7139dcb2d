# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Build trials of speaker verification in adverse conditions: speech → recordings → trials, by condition.

`csc_hf.evaluation.trial_set` defines recordings, signals, trials and conditions.
"""

import bisect
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ..audio import SAMPLING_RATE, SILENCE_POWER, power
from ..data.reservoir import ANY_LENGTH, UnusableRow, usable_utterance
from ..data.utterances import Row, Utterance, check_unique_ids
from .trial_set import BASIC_CONDITIONS, CONDITIONS, KINDS, Trials, TrialSet


def decode_usable(rows: Iterable[Row], left_out: dict[str, str], needs_speaker: bool = True) -> Iterator[Utterance]:
    """Decode rows (`stream_utterances(...).rows()`). Those that cannot be used are left out, and `left_out` gets their
    id and the reason (`csc_hf.data.reservoir.usable_utterance`).

    Raises:
        ValueError: Two rows have the same id.
    """
    for row in check_unique_ids(rows):
        try:
            yield usable_utterance(row, ANY_LENGTH, needs_speaker=needs_speaker)
        except UnusableRow as error:
            left_out[row.id] = str(error)


def build_trials(
    utterances: Iterable[Utterance],
    seed: int = 0,
    seconds: float = 4.0,
    recordings_per_speaker: int = 6,
    conditions: Sequence[str] = BASIC_CONDITIONS,
    noise: Iterable[Utterance] | None = None,
    max_speakers: int | None = None,
    enrolment_recordings: int = 1,
) -> TrialSet:
    """Make recordings of every speaker and all trials between them.

    The clips of a speaker are shuffled by `seed` and make recordings of exactly `seconds`. A clip that is long enough
    makes one by itself, shorter ones are joined. The rest of a clip is not used again.

    Each recording gets interferers: recordings of other speakers of the same source, or of any other speakers where
    the source has none left or is unknown. The recordings of a speaker get different interferers as far as possible.
    The same interferers and the same noise serve at all levels.

    A target trial pairs an enrolment with another recording of its speaker. If both are mixtures, their interferers
    differ. In a non-target trial no speaker is on both sides, in whatever role. All such pairs are trials.

    The result does not depend on the order of the utterances. No more audio is held in memory than the recordings
    need, and that of speakers who do not have enough yet.

    Args:
        utterances: Clips at 16 kHz with their speakers. Those that are silent or not finite are left out; see
            `TrialSet.audio_left_out`.
        seed: Seed of the draws: clips of each recording, speakers, interferers, noise.
        seconds: Length of a recording.
        recordings_per_speaker: Most recordings of a speaker, at least one more than `enrolment_recordings`.
        conditions: Names in `CONDITIONS`.
        noise: Recorded noise at 16 kHz, which is cut into stretches of `seconds`; a shorter one is repeated. `None`:
            noise is generated, from white to brown.
        max_speakers: Most speakers. `None`: all.
        enrolment_recordings: Recordings of one enrolment. Those that do not fill one are used as tests only.

    Raises:
        ValueError: An utterance has no speaker or a repeated id, a condition is unknown or not possible with these
            recordings, or there are too few speakers.
    """
    unknown = [name for name in conditions if name not in CONDITIONS]
    if unknown or not conditions:
        raise ValueError(f"conditions {unknown} are unknown: choose some of {', '.join(CONDITIONS)}")
    if not 1 <= enrolment_recordings < recordings_per_speaker:
        raise ValueError(
            f"enrolment_recordings={enrolment_recordings} must be at least 1, and recordings_per_speaker="
            f"{recordings_per_speaker} larger, so that a recording is left for the test"
        )
    num_samples = round(seconds * SAMPLING_RATE)
    if num_samples < 1:
        raise ValueError(f"seconds must be at least one sample, 1 / {SAMPLING_RATE}, got {seconds}")
    for name in conditions:
        enrolment, test = (KINDS[kind] for kind in CONDITIONS[name])
        if seconds < (test.seconds or 0):
            raise ValueError(f"condition {name!r} cuts recordings of {seconds} s to {test.seconds} s: raise seconds")
        if enrolment_recordings > 1 and enrolment.talkers > 1:
            raise ValueError(f"condition {name!r} enrols from one mixture: leave it out, or enrol from one recording")

    audio_left_out: dict[str, str] = {}
    clips = _usable(utterances, audio_left_out, num_samples)
    made, all_speakers = _make_recordings(
        clips, seed, num_samples, recordings_per_speaker, enrolment_recordings + 1, max_speakers
    )
    recordings = tuple(itertools.chain(*(made[speaker] for speaker in sorted(made))))
    speakers = np.unique([recording.speaker for recording in recordings], return_inverse=True)[1]
    num_talkers = max(KINDS[kind].talkers for name in conditions for kind in CONDITIONS[name])
    needed = max(num_talkers, 2)
    if len(made) < needed:
        raise ValueError(
            f"trials need at least {needed} speakers with {enrolment_recordings + 1} recordings of {seconds} s each, "
            f"got {len(made)} of {len(all_speakers)} speakers: give more speech or fewer seconds"
        )
    stretches: tuple[Utterance, ...] = ()
    if noise is not None and any(KINDS[kind].snr_db is not None for name in conditions for kind in CONDITIONS[name]):
        stretches = _cut_noise(_usable(noise, audio_left_out), seed, num_samples, len(recordings))

    # Unknown sources are negative: they are nobody's source.
    names = sorted({recording.source for recording in recordings if recording.source is not None})
    sources = np.array([-1 if r.source is None else names.index(r.source) for r in recordings])
    talkers = _draw_interferers(speakers, sources, num_talkers, np.random.default_rng(seed))
    enrolments = np.arange(len(recordings))[:, None]
    if enrolment_recordings > 1:
        enrolments = np.concatenate(
            [
                of_speaker[: len(of_speaker) // enrolment_recordings * enrolment_recordings]
                for of_speaker in np.split(np.arange(len(recordings)), np.flatnonzero(np.diff(speakers)) + 1)
            ]
        ).reshape(-1, enrolment_recordings)

    pairs: dict[tuple[int, int, bool], tuple[np.ndarray, ...]] = {}  # conditions that differ in levels share theirs
    by_condition = {}
    for name in conditions:
        kinds = CONDITIONS[name]
        signature = (KINDS[kinds[0]].talkers, KINDS[kinds[1]].talkers, kinds[0] == kinds[1])
        if signature not in pairs:
            pairs[signature] = _pair(*signature, enrolments, talkers, speakers, sources)
        by_condition[name] = Trials(kinds, *pairs[signature])
    return TrialSet(
        recordings=recordings,
        talkers=talkers,
        enrolments=enrolments,
        noise=stretches,
        conditions=by_condition,
        seed=seed,
        seconds=seconds,
        speakers_left_out=tuple(sorted(all_speakers - made.keys())) if max_speakers is None else (),
        audio_left_out=audio_left_out,
    )


def _usable(
    utterances: Iterable[Utterance], left_out: dict[str, str], num_samples: int | None = None
) -> Iterator[Utterance]:
    """Yield utterances whose first `num_samples` can be used; note the others in `left_out`."""
    for utterance in check_unique_ids(utterances):  # or one clip could be on both sides of a trial
        if not np.isfinite(utterance.waveform).all():
            left_out[utterance.id] = "holds NaN or infinite samples"
        elif power(utterance.waveform[:num_samples]) < SILENCE_POWER:
            left_out[utterance.id] = "is silent"
        else:
            yield utterance


def _make_recordings(
    clips: Iterable[Utterance], seed: int, num_samples: int, at_most: int, at_least: int, max_speakers: int | None
) -> tuple[dict[str, list[Utterance]], set[str]]:
    """The recordings (num_samples,) of each speaker that has `at_least` so many, and the names of all speakers.

    Clips are ranked by a hash. The first recordings that they make in this order are kept, with the clips up to the
    last one of them. One more clip among these never makes fewer recordings. So a clip that was dropped is not needed
    later, and the order in which clips come does not matter. The same holds for speakers.
    """
    ranked: dict[str, list[tuple[int, Utterance]]] = {}  # by speaker, the clips by rank
    ready: list[tuple[int, str]] = []  # speakers with enough recordings, by rank
    joined: dict[str, list[list[Utterance]]] = {}
    met = set()
    for clip in clips:
        if clip.speaker is None:
            raise ValueError(f"utterance {clip.id!r} has no speaker: trials need the speaker of every utterance")
        speaker = clip.speaker
        met.add(speaker)
        place = (_rank(seed, "speaker", speaker), speaker)
        if max_speakers is not None and len(ready) == max_speakers and place > ready[-1]:
            continue
        # A copy, since a view would keep the rest of a long clip in memory.
        clip = Utterance(clip.id, clip.waveform[:num_samples].copy(), speaker, clip.source)
        of_speaker = ranked.setdefault(speaker, [])
        bisect.insort(of_speaker, (_rank(seed, "clip", clip.id), clip), key=lambda entry: entry[0])
        joins, num_used = _join([clip for _, clip in of_speaker], num_samples, at_most)
        del of_speaker[num_used:]
        joined[speaker] = joins
        if len(joins) >= at_least and place not in ready:
            bisect.insort(ready, place)
            if max_speakers is not None and len(ready) > max_speakers:
                ready.pop()
            if len(ready) == max_speakers:
                for other in [name for name in ranked if (_rank(seed, "speaker", name), name) > ready[-1]]:
                    del ranked[other], joined[other]

    def concatenate(parts: list[Utterance]) -> Utterance:
        waveform = np.concatenate([part.waveform for part in parts])[:num_samples]
        name = f"{parts[0].speaker}:{'+'.join(part.id for part in parts)}"
        return Utterance(name, waveform, parts[0].speaker, parts[0].source)

    return {speaker: [concatenate(parts) for parts in joined[speaker]] for _, speaker in ready}, met


def _join(clips: Sequence[Utterance], num_samples: int, at_most: int) -> tuple[list[list[Utterance]], int]:
    """The clips of each recording, which are of one source, and the number of clips that were used."""
    joins = []
    waiting: dict[str | None, list[Utterance]] = {}  # by source: short clips of the recording that is being joined
    for position, clip in enumerate(clips, start=1):
        parts = [clip]
        if len(clip.waveform) < num_samples:
            parts = waiting.setdefault(clip.source, [])
            parts.append(clip)
            if sum(len(part.waveform) for part in parts) < num_samples:
                continue
            del waiting[clip.source]
        joins.append(parts)
        if len(joins) == at_most:
            return joins, position
    return joins, len(clips)


def _cut_noise(recordings: Iterable[Utterance], seed: int, num_samples: int, at_most: int) -> tuple[Utterance, ...]:
    """Stretches (num_samples,) of noise: those with the lowest ranks."""
    stretches: list[tuple[int, Utterance]] = []
    for recording in recordings:
        waveform = recording.waveform
        if len(waveform) < num_samples:
            waveform = np.resize(waveform, num_samples)  # again and again
        for number in range(len(waveform) // num_samples):
            name = f"{recording.id}#{number}"
            rank = _rank(seed, "noise", name)
            stretch = waveform[number * num_samples : (number + 1) * num_samples]
            if power(stretch) < SILENCE_POWER or (len(stretches) == at_most and rank > stretches[-1][0]):
                continue
            bisect.insort(stretches, (rank, Utterance(name, stretch.copy())), key=lambda entry: entry[0])
            del stretches[at_most:]
    if not stretches:
        raise ValueError("the noise data holds nothing but silence: give other noise, or leave it out to generate it")
    return tuple(stretch for _, stretch in stretches)


def _draw_interferers(
    speakers: np.ndarray, sources: np.ndarray, num_talkers: int, rng: np.random.Generator
) -> np.ndarray:
    """(recordings, num_talkers) numbers of recordings of different speakers: the recording itself, then others, of the
    same source if possible."""
    talkers = np.tile(np.arange(len(speakers))[:, None], num_talkers)
    for column in range(1, num_talkers):
        for speaker in range(speakers.max() + 1):
            # The recordings of a speaker take turns through the others, so that target trials of two mixtures, which
            # need different interferers, exist wherever possible.
            rank = rng.permutation(speakers.max() + 1)
            for turn, number in enumerate(rng.permutation(np.flatnonzero(speakers == speaker))):
                others = ~np.isin(speakers, speakers[talkers[number, :column]])
                of_source = others & (sources == sources[number]) & (sources >= 0)
                if of_source.any():
                    others = of_source
                candidates = sorted(set(speakers[others]), key=lambda other: rank[other])
                interfering = candidates[turn % len(candidates)]
                talkers[number, column] = rng.choice(np.flatnonzero(others & (speakers == interfering)))
    return talkers


def _pair(
    enrolment_talkers: int,
    test_talkers: int,
    same_kind: bool,
    enrolments: np.ndarray,
    talkers: np.ndarray,
    speakers: np.ndarray,
    sources: np.ndarray,
) -> tuple[np.ndarray, ...]:
    """All trials between enrolments and test signals: the columns of `Trials`."""
    of_enrolment = speakers[talkers[enrolments[:, 0], :enrolment_talkers]]
    of_test = speakers[talkers[:, :test_talkers]]
    num_shared = np.zeros((len(enrolments), len(talkers)), dtype=np.int8)
    for one, other in itertools.product(of_enrolment.T, of_test.T):
        num_shared += one[:, None] == other
    same_target = of_enrolment[:, :1] == of_test[:, 0]
    is_trial = num_shared == same_target
    for numbers in enrolments.T:
        is_trial[np.arange(len(enrolments)), numbers] = False  # no recording is on both sides
    if same_kind and enrolments.shape[1] == 1:
        is_trial = np.triu(is_trial)  # each pair once
    enrolment, test = (numbers.astype(np.int32) for numbers in np.nonzero(is_trial))
    source, test_source = sources[enrolments[enrolment, 0]], sources[test]
    within_source = np.where(source == test_source, source, -1).astype(np.int32)
    return enrolment, test, same_target[enrolment, test], within_source


def _rank(seed: int, what: str, name: str) -> int:
    """A number to sort by, a hash of the seed and a name."""
    digest = hashlib.blake2b(json.dumps([seed, what, name]).encode(), digest_size=8).digest()
    return int.from_bytes(digest)
