# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Talkers that are tones, and a model that hears exactly when each of them speaks."""

import numpy as np
import torch

from csc_hf import CSCConfig, CSCForSpeechSeparation, CSCSeparationOutput

RATE = 16000
FRAME = 512
NUM_TALKERS = 8


def talk(*turns: tuple[int, float, float], seconds: float, level: float = 0.1) -> np.ndarray:
    """A recording of turns (talker, start, end), in seconds."""
    time = np.arange(round(seconds * RATE))
    waveform = np.zeros(len(time), np.float32)
    for talker, start, end in turns:
        part = slice(round(start * RATE), round(end * RATE))
        waveform[part] += level * np.sin(2 * np.pi * _bin(talker) * time[part] / FRAME).astype(np.float32)
    return waveform


def voice(talker: int, size: int = 32) -> np.ndarray:
    """The embedding of a talker."""
    return np.eye(size)[talker]


def _bin(talker: int) -> int:
    """Periods of a talker's tone in a frame."""
    return 10 + 5 * talker


class ToneModel(CSCForSpeechSeparation):
    """
    Puts the two talkers who are loudest in a chunk into its slots, in random order, and hears no others. An idle slot
    has a random embedding.

    Args:
        noise: Length of what is added to the embeddings at random.
    """

    separator = None

    def __init__(self, noise: float = 0.3):
        super().__init__(CSCConfig.tiny(frame_activity=True))
        self.rng = np.random.default_rng(0)
        self.noise = noise
        self.lengths: list[int] = []  # of the chunks
        self.eval()

    @property
    def base_model(self):
        return self

    def forward(self, input_values, attention_mask=None):
        rows = [self._hear(row.numpy()) for row in input_values]
        self.lengths += [input_values.shape[1]] * len(rows)
        stacked = [torch.tensor(np.stack(values), dtype=torch.float32) for values in zip(*rows, strict=True)]
        return CSCSeparationOutput(
            sources=stacked[0],
            source_embeddings=stacked[1],
            source_activity=stacked[2],
            source_frame_activity=stacked[3],
        )

    def _hear(self, waveform: np.ndarray) -> tuple[np.ndarray, ...]:
        frames = np.pad(waveform, (0, -len(waveform) % FRAME)).reshape(-1, FRAME)
        spectrum = np.fft.rfft(frames)[:, [_bin(talker) for talker in range(NUM_TALKERS)]]
        amplitude = 2 / FRAME * np.abs(spectrum).T  # (talkers, frames)
        loudness = amplitude.sum(axis=1) - 0.01 * np.arange(NUM_TALKERS)  # of those who are alike, the first
        loudest = self.rng.permutation(np.argsort(-loudness, kind="stable")[:2])
        active = amplitude[loudest] > 0.02
        embeddings = np.stack([voice(talker, self.config.speaker_embedding_size) for talker in loudest])
        embeddings[~active.any(axis=1)] = 0
        offset = self.rng.standard_normal(embeddings.shape)
        embeddings = embeddings + self.noise * offset / np.linalg.norm(offset, axis=1, keepdims=True)
        sources = np.zeros((2, len(waveform)))
        for slot, talker in enumerate(loudest):
            alone = np.zeros((len(frames), FRAME // 2 + 1), complex)
            alone[:, _bin(talker)] = spectrum[:, talker]
            sources[slot] = np.fft.irfft(alone, FRAME).reshape(-1)[: len(waveform)]
        return (
            sources,
            embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True),
            np.where(active.any(axis=1), 5.0, -5.0),
            np.where(active, 5.0, -5.0),
        )
