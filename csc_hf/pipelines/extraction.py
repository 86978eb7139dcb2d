# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
# mypy: disable-error-code="override"
"""`pipeline("target-speaker-extraction")`."""

from dataclasses import asdict
from typing import Any

from ..enrolment import Enrolment, enrol
from ..extraction import extraction
from ..long_audio import Job
from ..streaming import speaker_threshold
from .base import _CSCPipeline


class TargetSpeakerExtractionPipeline(_CSCPipeline):
    """
    The voice of one enrolled person in a recording of any length, with any number of talkers, and silence where that
    person does not speak.

    Args:
        model: A CSC model that separates. By name, a [`CSCForSpeechSeparation`] is loaded.
        enrolment (*optional*): Recording of that person, or a list of several. A few seconds of speech will do. They
            can be enrolled later, by `enrol`, as well.
        threshold (`float`, *optional*): Lowest cosine at which a voice is taken for theirs. By default, by the model's
            calibration ([`~csc_hf.streaming.speaker_threshold`]).
        condition (`str`, *optional*): Condition whose calibration is used, if several are stored.

    `threshold` and `condition` can also be given in each call. With `batch_size`, recordings of a list, generator or
    dataset go through the model together. Results stay the same.

    Example:

    ```python
    >>> from transformers import pipeline
    >>> import csc_hf

    >>> extract = pipeline("target-speaker-extraction", model="user/csc", enrolment="anna.wav")
    >>> extract("meeting.wav")
    {'source': array([...], dtype=float32), 'score': 0.71, 'present': True, 'threshold': 0.5, 'sampling_rate': 16000}
    ```"""

    def __init__(self, *args, enrolment=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.enrolled: Enrolment | None = None
        if enrolment is not None:
            self.enrol(enrolment)

    def _sanitize_parameters(self, **parameters):
        preprocess = self._preprocess_parameters(parameters)
        unknown = parameters.keys() - {"threshold", "condition"}
        if unknown:
            raise TypeError(f"unknown options {sorted(unknown)}: this pipeline has enrolment, threshold and condition")
        return preprocess, parameters, {}

    def enrol(self, recordings, channel: int | None = None) -> None:
        """
        Choose the person whose voice is extracted from now on.

        Args:
            recordings: One recording, or a list of several.
            channel: The only channel to hear, counted from 0. By default, all are averaged.

        Raises:
            ValueError: A recording cannot be decoded, is empty, silent, or holds NaN.
        """
        enrolled = enrol(self.model, self._decode_enrolment(recordings, channel))
        if enrolled.silent:
            raise ValueError("a recording of the enrolment is silent: leave it out")
        self.enrolled = enrolled

    def __call__(self, inputs, **options):
        """
        Args:
            inputs: A recording, or a list, generator or dataset of recordings.
            threshold, condition: As of the pipeline.
            channel (`int`, *optional*): The only channel to hear, counted from 0. By default, all are averaged.

        Returns:
            `dict`: `source`, float32 (samples,), silent where the person is not found, at the level at which the
            voices best add up to the recording. It does not clip where the recording does not. `sampling_rate`;
            `score`, the highest cosine of the enrolled person with a voice anywhere in the recording, None if that is
            silent; `present`, whether it reaches the `threshold`: if not, all of the source is silent.

            For a list, a list of results in its order; for a generator or dataset, an iterator.

        Raises:
            ValueError: Nobody is enrolled; a recording cannot be decoded, is empty, or holds NaN; several calibrations
                and no condition, or none of that condition.
        """
        return super().__call__(inputs, **options)

    def preprocess(self, inputs, channel: int | None = None) -> dict:
        if self.enrolled is None:
            raise ValueError("nobody is enrolled: give enrolment=..., or call .enrol(recordings) first")
        return {"recording": self._decode(inputs, "recording", channel)}

    def _num_samples(self, trial: dict) -> int:
        return len(trial["recording"])

    def _job(self, trial: dict, threshold: float | None = None, condition: str | None = None) -> Job[dict]:
        assert self.enrolled is not None  # `preprocess` has checked
        if threshold is None:
            threshold = speaker_threshold(self.model, condition)
        voice = yield from extraction(self.model, trial["recording"], self.enrolled.embedding, threshold=threshold)
        return {**asdict(voice), "sampling_rate": self.model.config.sampling_rate}

    def postprocess(self, outputs: dict) -> dict[str, Any]:
        return outputs
