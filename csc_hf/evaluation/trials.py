# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Trials of speaker verification in adverse conditions: speech → recordings → signals → trials, by condition.

A *recording* is a few seconds of one speaker. A *signal* is what a model hears: a recording, to which something was
done; its *kind* says what. A *trial* asks whether the target speaker of an enrolment (one or several signals) is that
of a test signal. A *condition* says of what kind enrolment and test signals are.
"""

import bisect
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property

import numpy as np

from ..audio import SAMPLING_RATE
from ..data.mixing import (
    NOISE_TILT,
    SILENCE_POWER,
    GeneratedNoise,
    MixtureRecipe,
    Piece,
    RecordedNoise,
    SourceRecipe,
    mix,
    power,
)
from ..data.utterances import Row, Utterance


@dataclass(frozen=True)
class Kind:
    """What is done to a recording to make a signal of it.

    Attributes:
        talkers: how many speak: the target, and interferers with recordings of their own.
        sir_db: power of the target over that of each interferer, the latter over the time in which he speaks.
        overlap: share of the time in which each interferer speaks: the loudest stretch of his recording, anywhere.
        snr_db: power of all the speech over that of noise. None: no noise.
        seconds: length of what is cut out in the end, where the target is loudest. None: nothing is cut off.
    """

    talkers: int = 1
    sir_db: float = 0.0
    overlap: float = 1.0
    snr_db: float | None = None
    seconds: float | None = None


KINDS = (
    {"clean": Kind()}
    | {f"noise{snr}": Kind(snr_db=snr) for snr in (10, 5, 0)}
    | {f"mix{sir}": Kind(talkers=2, sir_db=sir) for sir in (10, 5, 0, -5)}
    | {"mix3": Kind(talkers=3)}
    | {f"overlap{percent}": Kind(talkers=2, overlap=percent / 100) for percent in (25, 50)}
    | {f"short{seconds}": Kind(seconds=seconds) for seconds in (2, 1)}
)
"""Kinds of signals, by name. A "mix" has two talkers, at 0 dB if its name does not tell, and mix3 has three."""

CONDITIONS = {kind: ("clean", kind) for kind in KINDS} | {"mix0_mix0": ("mix0", "mix0")}
"""Name of a condition -> kind of its enrolment signals and of its test signals."""

BASIC_CONDITIONS = ("clean", "mix0", "mix0_mix0")
"""What is enough to watch a training."""


@dataclass(frozen=True, eq=False)
class Trials:
    """The P trials of one condition.

    Attributes:
        kinds: kind of the enrolment signals and of the test signals.
        enrolment: (P,) number of the enrolment.
        test: (P,) number of the test signal, which is that of its target's recording.
        is_target: (P,) whether one speaker is the target of both.
        within_source: (P,) number of the source that the targets of both come from, so that the channel does not tell
            them apart; -1 if they come from two, or it is unknown.
    """

    kinds: tuple[str, str]
    enrolment: np.ndarray
    test: np.ndarray
    is_target: np.ndarray
    within_source: np.ndarray


@dataclass(frozen=True, eq=False)
class TrialSet:
    """Recordings of held-out speakers and the trials over them, by condition. From `build_trials`, or of files.

    Attributes:
        recordings: N recordings, `Utterance` or alike. The id of one that was built is "speaker:clip+clip+...".
        talkers: (N, talkers) numbers of the recordings that are in a signal, the target first, which is the recording
            of that number. A kind takes as many of them as it has talkers.
        enrolments: (G, K) numbers of the recordings that each enrolment is made of, K of one speaker.
        noise: what signals take their noise from, in turn; none: it is generated.
        conditions: the trials of each condition, by its name.
        seed: what all the draws were made from; None if nothing was drawn.
        seconds: length of a recording; None if they differ.
        speakers_left_out: speakers with too little speech.
        audio_left_out: id of an utterance that was of no use -> why.
    """

    recordings: tuple[Utterance, ...]
    talkers: np.ndarray
    enrolments: np.ndarray
    noise: tuple[Utterance, ...]
    conditions: dict[str, Trials]
    seed: int | None
    seconds: float | None
    speakers_left_out: tuple[str, ...] = ()
    audio_left_out: dict[str, str] = field(default_factory=dict)

    @cached_property
    def speakers(self) -> np.ndarray:
        """(N,) number of the speaker of each recording."""
        return np.unique([recording.speaker for recording in self.recordings], return_inverse=True)[1]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of signals that the conditions need."""
        return tuple(dict.fromkeys(itertools.chain(*(trials.kinds for trials in self.conditions.values()))))

    def signal(self, kind: str, number: int) -> tuple[np.ndarray, np.ndarray]:
        """A signal (T,), and its sources (talkers, T), the target first. Without noise, it is their sum."""
        how = KINDS[kind]
        target, *interferers = (self.recordings[i].waveform for i in self.talkers[number, : how.talkers])
        rng = np.random.default_rng([self.seed or 0, number])
        sources = np.zeros((how.talkers, len(target)), dtype=np.float32)
        sources[0] = target
        for source, interferer in zip(sources[1:], interferers, strict=True):
            stretch = _loudest(interferer, round(how.overlap * len(target)))
            start = rng.integers(len(target) - len(stretch) + 1)
            gain = np.sqrt(power(target) / power(stretch) * 10 ** (-how.sir_db / 10))
            source[start : start + len(stretch)] = gain * stretch
        signal = sources.sum(axis=0)
        if how.snr_db is not None:
            signal = self._add_noise(signal, how.snr_db, number, rng)
        if how.seconds is not None:
            start = _loudest_start(target, round(how.seconds * SAMPLING_RATE))
            stretch = slice(start, start + round(how.seconds * SAMPLING_RATE))
            signal, sources = signal[stretch], sources[:, stretch]
        return signal, sources

    def _add_noise(self, speech: np.ndarray, snr_db: float, number: int, rng: np.random.Generator) -> np.ndarray:
        everything = (Piece("speech", 0, len(speech), 0),)
        waveforms = {"speech": speech}
        if self.noise:
            waveforms["noise"] = self.noise[number % len(self.noise)].waveform
            noise = RecordedNoise((Piece("noise", 0, len(speech), 0),), snr_db)
        else:
            noise = GeneratedNoise(int(rng.integers(2**63)), rng.uniform(*NOISE_TILT), snr_db)
        return mix(MixtureRecipe(len(speech), 1, (SourceRecipe(0, everything, None),), noise), waveforms)[0]

    @cached_property
    def sha256(self) -> str:
        """Hash of the trial list: what was drawn, what clips are in which signal, and each trial of each condition."""
        header = {
            "seed": self.seed,
            "seconds": self.seconds,
            "recordings": [recording.id for recording in self.recordings],
            "noise": [recording.id for recording in self.noise],
            "talkers": self.talkers.tolist(),
            "enrolments": self.enrolments.tolist(),
            "kinds": {kind: asdict(KINDS[kind]) for kind in self.kinds},
        }
        digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
        for name, trials in self.conditions.items():
            digest.update(json.dumps([name, *trials.kinds]).encode())
            for column in (trials.enrolment, trials.test, trials.is_target, trials.within_source):
                digest.update(column.astype("<i4").tobytes())
        return digest.hexdigest()

    def signals_sha256(self, kind: str) -> str:
        """Hash of all that the signals of a kind are made of, the audio itself included."""
        how = KINDS[kind]
        header = {"seed": self.seed, "kind": asdict(how), "talkers": self.talkers[:, : how.talkers].tolist()}
        digest = hashlib.sha256(json.dumps(header).encode())
        for recording_digest in self._audio_digests[: None if how.snr_db is not None else len(self.recordings)]:
            digest.update(recording_digest)
        return digest.hexdigest()

    @cached_property
    def _audio_digests(self) -> list[bytes]:
        """Of the recordings, then of the noise."""
        return [hashlib.sha256(audio.waveform.tobytes()).digest() for audio in (*self.recordings, *self.noise)]


def decodable(rows: Iterable[Row], failures: dict[str, str]) -> Iterator[Utterance]:
    """The utterances of rows (`stream_utterances(...).rows()`). Those that cannot be decoded go to `failures`."""
    for row in rows:
        try:
            yield row.decode()
        except ValueError as error:
            failures[row.id] = str(error)


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

    The speaker's clips, in an order drawn from `seed`, make recordings of exactly `seconds`: a clip that is long
    enough makes one by itself, shorter ones are joined; what is left over of a clip is not used again. Each recording
    gets interferers: recordings of other speakers of the same source, or of any other speakers where the source has
    none left or is unknown. The first interferers of one speaker's recordings are as many different speakers as there
    are. The same interferers, and the same noise, serve at all levels.

    Target trials pair an enrolment and another recording of its speaker; two mixtures of a target trial have different
    interferers. In a non-target trial no speaker, in whatever role, is on both sides. All such pairs are trials.

    What comes out does not depend on the order of the utterances. No more audio is held than the recordings need, and
    that of speakers who have not enough yet.

    Args:
        utterances: Clips at 16 kHz with their speakers. Those that are silent or not finite are left out and named.
        seed: Draws the clips of each recording, speakers, interferers and noise.
        seconds: Length of a recording.
        recordings_per_speaker: At most so many; at least one more than `enrolment_recordings`.
        conditions: Names in `CONDITIONS`.
        noise: Recorded noise at 16 kHz, which is cut into stretches; a recording shorter than that is repeated.
            `None`: noise is generated, from white to brown.
        max_speakers: Take so many speakers, if there are more. `None`: all.
        enrolment_recordings: Recordings of one enrolment. A speaker has as many enrolments as come out even.

    Raises:
        ValueError: an utterance without a speaker or with a repeated id, an unknown condition, a condition that these
            recordings do not allow, or too few speakers.
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
    """Those whose audio can be used, of which no more than the first `num_samples` will be; the others are noted."""
    seen = set()
    for utterance in utterances:
        if utterance.id in seen:
            raise ValueError(
                f"two utterances have the id {utterance.id!r}: one clip must not be on both sides of a trial"
            )
        seen.add(utterance.id)
        if not np.isfinite(utterance.waveform).all():
            left_out[utterance.id] = "holds NaN or infinite samples"
        elif power(utterance.waveform[:num_samples]) < SILENCE_POWER:
            left_out[utterance.id] = "is silent"
        else:
            yield utterance


def _make_recordings(
    clips: Iterable[Utterance], seed: int, num_samples: int, at_most: int, at_least: int, max_speakers: int | None
) -> tuple[dict[str, list[Utterance]], set[str]]:
    """The recordings (num_samples,) of each speaker that has `at_least` so many; and all speakers that were met.

    A speaker's clips are ranked by a hash, and the first recordings that they make in this order are kept, with the
    clips up to the last one of them. One more clip among these never makes fewer recordings. So a clip that was let go
    is not needed later, and the order in which the clips come does not matter; nor does it for speakers.
    """
    ranked: dict[str, list[tuple[int, Utterance]]] = {}  # by speaker, the clips by rank
    ready: list[tuple[int, str]] = []  # speakers with enough recordings, by rank
    joined: dict[str, list[list[Utterance]]] = {}
    met = set()
    for clip in clips:
        if clip.speaker is None:
            raise ValueError(f"utterance {clip.id!r} has no speaker: trials need the speaker of every utterance")
        met.add(clip.speaker)
        place = (_rank(seed, "speaker", clip.speaker), clip.speaker)
        if max_speakers is not None and len(ready) == max_speakers and place > ready[-1]:
            continue
        # A copy, since a view would keep the rest of a long clip in memory.
        clip = Utterance(clip.id, clip.waveform[:num_samples].copy(), clip.speaker, clip.source)
        of_speaker = ranked.setdefault(clip.speaker, [])
        bisect.insort(of_speaker, (_rank(seed, "clip", clip.id), clip), key=lambda entry: entry[0])
        joins, num_used = _join([clip for _, clip in of_speaker], num_samples, at_most)
        del of_speaker[num_used:]
        joined[clip.speaker] = joins
        if len(joins) >= at_least and place not in ready:
            bisect.insort(ready, place)
            if max_speakers is not None and len(ready) > max_speakers:
                ready.pop()
            if len(ready) == max_speakers:
                for speaker in [other for other in ranked if (_rank(seed, "speaker", other), other) > ready[-1]]:
                    del ranked[speaker], joined[speaker]

    def concatenate(parts: list[Utterance]) -> Utterance:
        waveform = np.concatenate([part.waveform for part in parts])[:num_samples]
        name = f"{parts[0].speaker}:{'+'.join(part.id for part in parts)}"
        return Utterance(name, waveform, parts[0].speaker, parts[0].source)

    return {speaker: [concatenate(parts) for parts in joined[speaker]] for _, speaker in ready}, met


def _join(clips: Sequence[Utterance], num_samples: int, at_most: int) -> tuple[list[list[Utterance]], int]:
    """The clips of each recording, of one source each, in the order of the clips; and how many clips it took."""
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
    """Stretches (num_samples,) of noise: of all that there are, those with the lowest ranks."""
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
    """(N, num_talkers) numbers of recordings of different speakers: itself, then others, of its source if possible."""
    talkers = np.tile(np.arange(len(speakers))[:, None], num_talkers)
    for column in range(1, num_talkers):
        for speaker in range(speakers.max() + 1):
            # In turn through the others in an order of this speaker's own, so that target trials of two mixtures (with
            # different interferers) exist wherever they can.
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
    """All trials between enrolments (G, K) and test signals (N,): the columns of `Trials`."""
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


# --- levels -------------------------------------------------------------------------------------------------------


def _rank(seed: int, what: str, name: str) -> int:
    """A number that decides on an order, drawn from the seed and a name."""
    digest = hashlib.blake2b(json.dumps([seed, what, name]).encode(), digest_size=8).digest()
    return int.from_bytes(digest)


def _loudest_start(waveform: np.ndarray, num_samples: int) -> int:
    """Where the stretch of so many samples with the most energy begins."""
    energy = np.cumsum(np.square(np.append(0.0, waveform)))
    return int(np.argmax(energy[num_samples:] - energy[:-num_samples]))


def _loudest(waveform: np.ndarray, num_samples: int) -> np.ndarray:
    start = _loudest_start(waveform, num_samples)
    return waveform[start : start + num_samples]
