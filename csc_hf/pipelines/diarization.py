# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
# mypy: disable-error-code="override"
"""`pipeline("speaker-diarization")`."""

import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ..audio import OneChannel
from ..diarization import Diarization, check_enrolled, check_frame_activity, diarization, listener, speaker_bounds
from ..long_audio import Job, run
from .base import _CSCPipeline, _is_waveform


class SpeakerDiarizationPipeline(_CSCPipeline):
    """
    Who speaks when, in a recording of any length and with any number of speakers.

    Args:
        model: A CSC model with `config.frame_activity`. By name, a [`CSCForSpeechSeparation`] is loaded.
        num_speakers (`int`, *optional*): Speakers of a recording, where it is known.
        min_speakers, max_speakers (`int`, *optional*): Bounds of their number, where it is not known.
        voices (`str`, *optional*): Folder for one WAV file of each speaker, for calls with one recording.

    All of them can also be given in each call. With `batch_size`, recordings of a list, generator or dataset go
    through the model together. Results stay the same.

    Example:

    ```python
    >>> from transformers import pipeline
    >>> import csc_hf

    >>> diarize = pipeline("speaker-diarization", model="user/csc")
    >>> diarize.enrol("anna", "anna.wav")
    >>> diarize("meeting.wav")
    {'turns': [{'start': 0.512, 'end': 5.28, 'speaker': 'anna', 'score': 0.93},
               {'start': 5.024, 'end': 9.92, 'speaker': 'speaker_2', 'score': 0.91}, ...],
     'num_speakers': 4, 'embeddings': {'anna': array([...], dtype=float32), ...}}
    ```"""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        check_frame_activity(self.model)
        self.enrolled: dict[str, np.ndarray] = {}

    def _sanitize_parameters(self, **parameters):
        preprocess = self._preprocess_parameters(parameters)
        known = ("num_speakers", "min_speakers", "max_speakers", "voices")
        if unknown := parameters.keys() - set(known):
            raise TypeError(f"unknown options {sorted(unknown)}: this pipeline has {', '.join(known)}")
        speaker_bounds(*(parameters.get(name) for name in known[:3]))
        return preprocess, parameters, {}

    def enrol(self, name: str, recordings, channel: int | None = None) -> None:
        """
        Name a person whenever they speak, from now on.

        Args:
            name: A name that is enrolled already is replaced.
            recordings: One recording of that person, or a list of several. A few seconds of speech will do.
            channel: The only channel to hear, counted from 0. By default, all are averaged.

        Raises:
            ValueError: A recording cannot be decoded, is empty, silent, or holds NaN; the name is not one of a file.
        """
        embedding = self._enrol(name, recordings, channel=channel).embedding
        self.enrolled |= check_enrolled({name: embedding}, self.model.config.speaker_embedding_size)

    def __call__(self, inputs, **options):
        """
        Args:
            inputs: A recording, or a list, generator or dataset of recordings. A file given by its path is decoded
                by blocks, in constant memory.
            num_speakers, min_speakers, max_speakers, voices: As of the pipeline.
            channel (`int`, *optional*): The only channel to hear, counted from 0. By default, all are averaged.

        Returns:
            `dict`: `turns`, in order of their beginning, each with its `start` and `end` in seconds, its `speaker` and
            a `score`, the mean probability that they speak; turns of different speakers may overlap. `num_speakers`,
            and the `embeddings` of the speakers by name, of unit length. Speakers are called by the names of enrolled
            people, the others "speaker_1", ... by their place among all speakers in order of appearance. See
            [`~csc_hf.diarization.Diarization`] for RTTM and other formats.

            For a list, a list of results in its order; for a generator or dataset, an iterator.

        Raises:
            ValueError: A recording cannot be decoded, is empty, or holds NaN; numbers of speakers contradict each
                other; there are voices of several recordings to be written.
        """
        several = (isinstance(inputs, list) and not _is_waveform(inputs)) or isinstance(inputs, Dataset | Iterator)
        several = several or hasattr(inputs, "column_names")
        if (options.get("voices") or self._forward_params.get("voices")) is not None and several:
            raise ValueError("voices=... is a folder for one recording: call the pipeline once for each")
        return super().__call__(inputs, **options)

    def preprocess(self, inputs, channel: int | None = None) -> dict:
        if isinstance(inputs, str | os.PathLike):
            # Its size says which files are longer, as long as they have one format.
            size = os.path.getsize(inputs) if os.path.exists(inputs) else 0
            return {"recording": OneChannel(inputs, channel), "size": size}
        waveform = self._decode(inputs, "recording", channel)
        return {"recording": waveform, "size": len(waveform)}

    def _num_samples(self, trial: dict) -> int:
        return trial["size"]

    def _forward(self, trials: list[dict], batch_size: int, **options) -> list[Diarization]:
        network = listener(self.model) if options.get("voices") is None else self.model
        return run(network, [self._job(trial, **options) for trial in trials], batch_size)

    def _job(self, trial: dict, **options) -> Job[Diarization]:
        return diarization(self.model, trial["recording"], enrolled=self.enrolled, **options)

    def postprocess(self, outputs: Diarization) -> dict[str, Any]:
        return {
            "turns": [asdict(turn) for turn in outputs.turns],
            "num_speakers": outputs.num_speakers,
            "embeddings": outputs.embeddings,
        }
