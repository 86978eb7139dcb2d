# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""What trials are made of: recordings, kinds of signals, conditions.

A *recording* is a few seconds of one speaker. A *signal* is what a model hears: a recording as it is, or with other
talkers, with noise, or cut; its *kind* tells which. A *trial* asks whether the target speaker of an enrolment (one or
several signals) is that of a test signal. A *condition* is a pair of kinds, of the enrolment and of the test.
"""

import hashlib
import itertools
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np

from ..audio import SAMPLING_RATE, power
from ..data.mixing import (
    NOISE_TILT,
    GeneratedNoise,
    MixtureRecipe,
    Piece,
    RecordedNoise,
    SourceRecipe,
    mix,
)


class Recording(Protocol):
    """Audio of one speaker: a `csc_hf.data.utterances.Utterance`, or what has the same attributes."""

    @property
    def id(self) -> str: ...

    @property
    def waveform(self) -> np.ndarray:
        """float32 (samples,) at 16 kHz."""

    @property
    def speaker(self) -> str | None: ...

    @property
    def source(self) -> str | None:
        """Corpus or channel."""


@dataclass(frozen=True)
class Kind:
    """What is done to a recording to make a signal of it.

    Attributes:
        talkers: Number of talkers: the target, and interferers with recordings of their own.
        sir_db: Power of the target over that of each interferer, in dB. The latter is measured over the time in which
            the interferer speaks.
        overlap: Share of the time in which each interferer speaks: the loudest stretch of their recording, at a random
            place.
        snr_db: Power of all the speech over that of the noise, in dB. None: no noise.
        seconds: Length of the cut made in the end, where the target is loudest. None: there is no cut.
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
    | {"mix3": Kind(talkers=3), "mix0+noise5": Kind(talkers=2, snr_db=5)}
    | {f"overlap{percent}": Kind(talkers=2, overlap=percent / 100) for percent in (25, 50)}
    | {f"short{seconds}": Kind(seconds=seconds) for seconds in (2, 1)}
)
"""Kinds of signals, by name. A "mix" has two talkers, at the SIR (in dB) in its name; mix3 has three, at 0 dB. A noise
is at the SNR in its name."""

CONDITIONS = {kind: ("clean", kind) for kind in KINDS} | {"mix0_mix0": ("mix0", "mix0")}
"""Name of a condition -> kind of its enrolment signals and of its test signals."""

BASIC_CONDITIONS = ("clean", "mix0", "mix0_mix0")
"""The conditions that are measured during training."""


@dataclass(frozen=True, eq=False)
class Trials:
    """The trials of one condition.

    Attributes:
        kinds: Kind of the enrolment signals and of the test signals.
        enrolment: (trials,) number of the enrolment.
        test: (trials,) number of the test signal, which is that of its target's recording.
        is_target: (trials,) whether one speaker is the target of both.
        within_source: (trials,) number of the source that the targets of both come from, so that the channel does not
            tell them apart; -1 if they come from two sources, or a source is unknown.
    """

    kinds: tuple[str, str]
    enrolment: np.ndarray
    test: np.ndarray
    is_target: np.ndarray
    within_source: np.ndarray


@dataclass(frozen=True, eq=False)
class TrialSet:
    """Recordings of held-out speakers and the trials over them, by condition.

    `csc_hf.evaluation.trials.build_trials` builds one, `csc_hf.evaluation.trial_files.read_trials` reads one.

    Attributes:
        recordings: The recordings. The id of one that was built is "speaker:clip+clip+...".
        talkers: (recordings, talkers) numbers of the recordings in a signal, the target first, which is the recording
            of that number. A kind takes as many of them as it has talkers.
        enrolments: (enrolments, recordings of an enrolment) numbers of the recordings of each enrolment, all of one
            speaker.
        noise: Recordings of noise that signals take in turn. None in it: noise is generated.
        conditions: The trials of each condition, by its name.
        seed: Seed of all draws; None if nothing was drawn.
        seconds: Length of a recording; None if lengths differ.
        speakers_left_out: Speakers with too little speech.
        audio_left_out: Id of an utterance that cannot be used -> reason.
    """

    recordings: tuple[Recording, ...]
    talkers: np.ndarray
    enrolments: np.ndarray
    noise: tuple[Recording, ...]
    conditions: dict[str, Trials]
    seed: int | None
    seconds: float | None
    speakers_left_out: tuple[str, ...] = ()
    audio_left_out: dict[str, str] = field(default_factory=dict)

    @cached_property
    def speakers(self) -> np.ndarray:
        """(recordings,) number of the speaker of each recording."""
        return np.unique([str(recording.speaker) for recording in self.recordings], return_inverse=True)[1]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of signals that the conditions need."""
        return tuple(dict.fromkeys(itertools.chain(*(trials.kinds for trials in self.conditions.values()))))

    def signal(self, kind: str, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Build a signal.

        Args:
            kind: Name in `KINDS`.
            number: Number of the target's recording.

        Returns:
            The signal (samples,) and its sources (talkers, samples), the target first. Without noise, the signal is
            the sum of its sources.
        """
        how = KINDS[kind]
        target, *interferers = (self.recordings[i].waveform for i in self.talkers[number, : how.talkers])
        rng = np.random.default_rng([self.seed or 0, number])
        sources = np.zeros((how.talkers, len(target)), dtype=np.float32)
        sources[0] = target
        for source, interferer in zip(sources[1:], interferers, strict=True):
            stretch = _loudest(interferer, round(how.overlap * len(target)))
            start = int(rng.integers(len(target) - len(stretch) + 1))
            gain = np.sqrt(power(target) / power(stretch) * 10 ** (-how.sir_db / 10))
            source[start : start + len(stretch)] = gain * stretch
        signal = sources.sum(axis=0)
        if how.snr_db is not None:
            signal = self._add_noise(signal, how.snr_db, number, rng)
        if how.seconds is not None:
            num_samples = round(how.seconds * SAMPLING_RATE)
            start = _loudest_start(target, num_samples)
            signal, sources = signal[start : start + num_samples], sources[:, start : start + num_samples]
        return signal, sources

    def _add_noise(self, speech: np.ndarray, snr_db: float, number: int, rng: np.random.Generator) -> np.ndarray:
        everything = (Piece("speech", 0, len(speech), 0),)
        waveforms = {"speech": speech}
        noise: RecordedNoise | GeneratedNoise
        if self.noise:
            waveforms["noise"] = self.noise[number % len(self.noise)].waveform
            noise = RecordedNoise((Piece("noise", 0, len(speech), 0),), snr_db)
        else:
            noise = GeneratedNoise(int(rng.integers(2**63)), rng.uniform(*NOISE_TILT), snr_db)
        return mix(MixtureRecipe(len(speech), 1, (SourceRecipe(0, everything, None),), noise), waveforms)[0]

    @cached_property
    def sha256(self) -> str:
        """Hash of the trial list: draws, the clips of each signal, and each trial of each condition."""
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
        """Hash of all that signals of a kind depend on, the audio itself included."""
        how = KINDS[kind]
        header = {"seed": self.seed, "kind": asdict(how), "talkers": self.talkers[:, : how.talkers].tolist()}
        digest = hashlib.sha256(json.dumps(header).encode())
        for recording_digest in self._audio_digests[: None if how.snr_db is not None else len(self.recordings)]:
            digest.update(recording_digest)
        return digest.hexdigest()

    @cached_property
    def _audio_digests(self) -> list[bytes]:
        """Hashes of the recordings, then of the noise."""
        return [hashlib.sha256(audio.waveform.tobytes()).digest() for audio in (*self.recordings, *self.noise)]


def _loudest_start(waveform: np.ndarray, num_samples: int) -> int:
    """Where the stretch of so many samples with the most energy begins."""
    energy = np.cumsum(np.square(np.append(0.0, waveform)))
    return int(np.argmax(energy[num_samples:] - energy[:-num_samples]))


def _loudest(waveform: np.ndarray, num_samples: int) -> np.ndarray:
    start = _loudest_start(waveform, num_samples)
    return waveform[start : start + num_samples]
