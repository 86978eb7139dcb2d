# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Voices that are tones, so that it is known which can be told apart."""

import numpy as np

from csc_hf.data.utterances import Utterance

RATE = 16000
SECONDS = 0.2
SAMPLES = 3200
SOURCES = ["studio", "phone"]


def tone(speaker: int, num_samples: int, seed: int) -> np.ndarray:
    """A "voice": the speaker's tone (orthogonal to others over `SAMPLES`), with a level and phase of the clip."""
    level, phase = np.random.default_rng(seed).uniform(0.05, 1.0, 2)
    angle = 2 * np.pi * (200 + 50 * speaker) * np.arange(num_samples) / RATE
    return (level * np.cos(angle + 2 * np.pi * phase)).astype(np.float32)


def clip(speaker: int, number: int, source: str | None, num_samples: int = SAMPLES) -> Utterance:
    waveform = tone(speaker, num_samples, seed=100 * speaker + number)
    return Utterance(id=f"s{speaker}-{number}", waveform=waveform, speaker=f"s{speaker}", source=source)


def clips_of(num_speakers: int = 10, num_clips: int = 4, sources: list = SOURCES) -> list[Utterance]:
    """Clips as long as a recording; speakers are assigned to the sources in turn."""
    return [
        clip(speaker, number, sources[speaker % len(sources)])
        for speaker in range(num_speakers)
        for number in range(num_clips)
    ]


class SpectrumEmbedder:
    """The shape of the spectrum below 2 kHz, by which tones are told apart."""

    fingerprint = "spectrum"

    def __call__(self, waveforms: list[np.ndarray]) -> np.ndarray:
        return np.stack([np.abs(np.fft.rfft(waveform, RATE))[:2000:10] + 1e-3 for waveform in waveforms])
