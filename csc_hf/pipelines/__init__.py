# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
`pipeline("speaker-verification")`, `pipeline("speaker-diarization")`, `pipeline("speech-separation")` and
`pipeline("target-speaker-extraction")` of Transformers.

A recording is anything that `csc_hf.audio.decode_audio` takes: a path, the bytes of a file, a float array or tensor
at the sampling rate of the model, `{"array": ..., "sampling_rate": ...}`, a decoded value of a `datasets` audio
column; or a row with such a column named "audio". It can have any length: long ones go through the model by chunks.
"""

from transformers.pipelines import PIPELINE_REGISTRY

from ..enrolment import Enrolment, is_silent
from .diarization import SpeakerDiarizationPipeline
from .extraction import TargetSpeakerExtractionPipeline
from .separation import SeparationModel, SpeechSeparationPipeline
from .verification import SpeakerVerificationPipeline, VerificationModel

__all__ = [
    "Enrolment",
    "SpeakerDiarizationPipeline",
    "SpeakerVerificationPipeline",
    "SpeechSeparationPipeline",
    "TargetSpeakerExtractionPipeline",
    "is_silent",
    "register",
]


def register() -> None:
    """Make the tasks known to `transformers.pipeline`."""
    for task, pipeline_class, model_class in (
        ("speaker-verification", SpeakerVerificationPipeline, VerificationModel),
        ("speaker-diarization", SpeakerDiarizationPipeline, SeparationModel),
        ("speech-separation", SpeechSeparationPipeline, SeparationModel),
        ("target-speaker-extraction", TargetSpeakerExtractionPipeline, SeparationModel),
    ):
        PIPELINE_REGISTRY.register_pipeline(task, pipeline_class, pt_model=model_class, type="audio")
        # With this attribute, `save_pretrained` would save its file as remote code, which it is not made to be.
        delattr(pipeline_class, "_registered_impl")
