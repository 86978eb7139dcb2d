# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Configuration of Contrastive Separative Coding (CSC) models."""

from collections.abc import Callable
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

MODEL_CLASSES = {
    "CSCModel": "AutoModel",
    "CSCForPreTraining": "AutoModelForPreTraining",
    "CSCForXVector": "AutoModelForAudioXVector",
    "CSCForSequenceClassification": "AutoModelForAudioClassification",
    "CSCForAudioFrameClassification": "AutoModelForAudioFrameClassification",
    "CSCForSpeechSeparation": None,
    "CSCForSpeakerVerification": None,
}
"""Every model class of `modeling_csc.py`, and the Auto class that loads it; `None` if there is none for its task."""

# Every saved folder names every class, so that each Auto class loads by remote code from what any head saved.
AUTO_MAP = {
    "AutoConfig": "configuration_csc.CSCConfig",
    "AutoFeatureExtractor": "feature_extraction_csc.CSCFeatureExtractor",
} | {auto_class: f"modeling_csc.{name}" for name, auto_class in MODEL_CLASSES.items() if auto_class is not None}


def _ceil_div(number, divisor: int):
    """`number / divisor`, rounded up. Not `-(-number // divisor)`: exported to ONNX, negative quotients round up."""
    return (number + divisor - 1) // divisor


@strict
class CSCConfig(PreTrainedConfig):
    r"""
    Configuration of a [`CSCModel`] and its heads. The defaults are those of [`CSCConfig.base`].

    Marks: [A] fixed by the abstract of the CSC paper (arXiv 2103.00816), [G] from GALR (arXiv 2101.05014), [O] our
    choice. What has no mark is our choice, too.

    Args:
        sampling_rate (`int`, defaults to 16000): Sampling rate of the input, in Hz [O].
        front_end (`str`, defaults to `"conv"`): `"conv"`, learnt filters on the raw waveform [G], or `"stft"`, a
            log-magnitude spectrogram [O]. The latter is several times cheaper because its hop is longer.
        conv_kernel (`int`, defaults to 32): Samples in a frame: the kernel of the filters, or the STFT window.
        conv_stride (`int`, defaults to 16): Samples between frames: the stride, or the STFT hop. Divides
            `conv_kernel`.
        num_mel_bins (`int`, *optional*): Mel bands in which the encoder sees the spectrogram; its linear bins if not
            given. For the front end `"stft"`, as are the next three [O].
        subtract_mean (`bool`, defaults to `False`): Whether each bin's mean over the recording is subtracted, which
            removes the frequency response of microphone and line, and with it much of what tells voices apart [O].
        frame_stride (`int`, defaults to 1): STFT frames that are joined into one frame of the encoder. Above 1, it
            needs a `mask_hidden_size` [O].
        mask_hidden_size (`int`, *optional*): Width of a layer in which the separation branch joins the hidden state of
            a slot with the spectrum of each STFT frame. If not given, masks are made of the hidden state alone [O].
        hidden_size (`int`, defaults to 128): Width of the blocks [G].
        local_layer (`str`, defaults to `"lstm"`): Recurrence along the frames of a segment, in both directions:
            `"lstm"` [G] or `"mingru"` [O]. The latter is several times cheaper because only an average is sequential.
        lstm_hidden_size (`int`, defaults to 128): Width of each direction of the recurrence [G].
        segment_length (`int`, defaults to 64): Frames of the encoder in a segment [G]; even if segments overlap.
        segment_overlap (`bool`, defaults to `True`): Whether segments overlap by half [G], so that each frame is
            computed twice. If not, one follows another [O].
        low_dim (`int`, defaults to 8): Rows that a segment is compressed to before global attention [G].
        num_attention_heads (`int`, defaults to 8): Heads of the global attention [G] and of the cross-attention [O].
        num_hidden_layers (`int`, defaults to 4): Blocks of the shared trunk.
        num_separation_layers (`int`, defaults to 2): Blocks of the separation branch.
        num_speaker_layers (`int`, defaults to 2): Blocks of the speaker branch.
        speaker_block (`str`, defaults to `"galr"`): What the speaker branch is made of: `"galr"`, blocks like those of
            the trunk, which read the hidden states of a slot [G], or `"conv"`, dilated convolutions with batch norm,
            which read the mel spectrum under a mask that the slot makes [O]. The latter learn voices from much less
            audio, and need `num_mel_bins` and `segment_overlap=False`.
        speaker_hidden_size (`int`, *optional*): Width of the convolutions of the speaker branch; `hidden_size` if not
            given [O].
        num_sources (`int`, defaults to 2): Slots: the most speakers in a mixture.
        speaker_embedding_size (`int`, defaults to 256): Size of the speaker embedding and of the global speaker vector
            [O].
        embedding_batch_norm (`bool`, defaults to `False`): Whether the statistics of a slot pass a batch norm before
            its speaker embedding is made of them. It takes away what all speakers have in common, which would fill the
            embeddings and takes long to unlearn. Training moments are those of the slots of a process [O].
        frame_activity (`bool`, defaults to `False`): Whether the model also tells when each slot speaks, every
            `activity_stride` samples. Its silent frames then count little in the speaker embedding [O].
        use_cross_attention (`bool`, defaults to `True`): Whether cross-attention reads the global speaker vector [A].
            Without it all segments count alike, which shows what the attention is worth [O].
        hidden_dropout (`float`, defaults to 0.1): Dropout on what a block adds to its input [G].
        attention_dropout (`float`, defaults to 0.1): Dropout on attention weights [G].
        layer_norm_eps (`float`, defaults to 1e-5): Added to variances.
        initializer_range (`float`, defaults to 0.1): Standard deviation of new linear layers [O].
        separation_loss_weight (`float`, defaults to 0.1): Weight of the negative SI-SNR, which is in dB [O].
        contrastive_loss_weight (`float`, defaults to 1.0): Weight of the contrastive loss, in nats [O].
        activity_loss_weight (`float`, defaults to 0.5): Weight of the slots' binary cross-entropy [O].
        frame_activity_loss_weight (`float`, defaults to 0.5): Weight of the binary cross-entropy of when the slots
            speak [O].
        band_mask_loss_weight (`float`, defaults to 1.0): Weight of the cross-entropy of the slots' shares of each mel
            band, which the speaker branch `"conv"` reads the spectrum by [O].
        contrastive_scale (`float`, defaults to 10.0): Initial value of the learnt scale of the squared distances in
            the contrastive loss [O].
        si_snr_threshold (`float`, defaults to 30.0): SI-SNR, in dB, at which the separation loss saturates [O].
        num_recording_classes (`int`, *optional*): Classes of recordings that [`CSCForPreTraining`] tells apart by a
            softmax beside the contrast, if it is given `recording_ids`. It needs no speaker labels [O].
        recording_loss_weight (`float`, defaults to 1.0): Weight of the cross-entropy of this softmax, in nats [O].
        recording_scale (`float`, defaults to 20.0): Scale of the cosines in this softmax [O].
        classifier_proj_size (`int`, defaults to 256): Hidden size of [`CSCForSequenceClassification`]'s classifier and
            of the head of [`CSCForSpeakerVerification`].
        xvector_margin (`float`, defaults to 0.2): Angular margin of [`CSCForXVector`]'s loss, in radians.
        xvector_scale (`float`, defaults to 30.0): Scale of [`CSCForXVector`]'s cosine logits.
        calibration (`dict`, *optional*): Calibrations of verification scores, as
            `csc_hf.evaluation.calibration.Calibration.store` writes them [O].
        diarization (`dict`, *optional*): Settings of diarization, as
            `csc_hf.diarization.DiarizationSettings.store` writes them [O].

    Raises:
        StrictDataclassError: If a value has the wrong type or no model can be built from it. The message names the
            field.

    Example:

    ```python
    >>> from csc_hf import CSCConfig, CSCModel

    >>> config = CSCConfig.tiny(num_sources=3)
    >>> config.num_segments(16000)
    64
    >>> model = CSCModel(config)
    ```"""

    model_type = "csc"

    sampling_rate: int = 16000
    front_end: str = "conv"
    conv_kernel: int = 32
    conv_stride: int = 16
    num_mel_bins: int | None = None
    subtract_mean: bool = False
    frame_stride: int = 1
    mask_hidden_size: int | None = None
    hidden_size: int = 128
    local_layer: str = "lstm"
    lstm_hidden_size: int = 128
    segment_length: int = 64
    segment_overlap: bool = True
    low_dim: int = 8
    num_attention_heads: int = 8
    num_hidden_layers: int = 4
    num_separation_layers: int = 2
    num_speaker_layers: int = 2
    speaker_block: str = "galr"
    speaker_hidden_size: int | None = None
    num_sources: int = 2
    speaker_embedding_size: int = 256
    embedding_batch_norm: bool = False
    frame_activity: bool = False
    use_cross_attention: bool = True
    hidden_dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.1
    separation_loss_weight: float | int = 0.1
    contrastive_loss_weight: float | int = 1.0
    activity_loss_weight: float | int = 0.5
    frame_activity_loss_weight: float | int = 0.5
    band_mask_loss_weight: float | int = 1.0
    contrastive_scale: float | int = 10.0
    si_snr_threshold: float | int = 30.0
    num_recording_classes: int | None = None
    recording_loss_weight: float | int = 1.0
    recording_scale: float | int = 20.0
    classifier_proj_size: int = 256
    xvector_margin: float | int = 0.2
    xvector_scale: float | int = 30.0
    calibration: dict | None = None
    diarization: dict | None = None

    def __post_init__(self, **kwargs):
        self.auto_map = dict(AUTO_MAP)
        super().__post_init__(**kwargs)

    @classmethod
    def tiny(cls, **overrides: Any) -> "CSCConfig":
        """The smallest model that has every part, for tests."""
        stft = overrides.get("front_end") == "stft"
        values: dict[str, Any] = {
            "conv_kernel": 512 if stft else 32,
            "conv_stride": 128 if stft else 16,
            "hidden_size": 16,
            "lstm_hidden_size": 16,
            "segment_length": 32,
            "low_dim": 4,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
            "num_separation_layers": 1,
            "num_speaker_layers": 1,
            "speaker_embedding_size": 32,
            "classifier_proj_size": 32,
        }
        return cls(**values | overrides)

    @classmethod
    def small(cls, **overrides: Any) -> "CSCConfig":
        """STFT front end, frames of 32 ms, convolutional speaker branch: a model that trains on a CPU."""
        values: dict[str, Any] = {
            "front_end": "stft",
            "conv_kernel": 512,
            "conv_stride": 256,
            "num_mel_bins": 80,
            "frame_stride": 2,
            "mask_hidden_size": 96,
            "hidden_size": 128,
            "lstm_hidden_size": 128,
            "segment_length": 8,
            "segment_overlap": False,
            "low_dim": 4,
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
            "num_separation_layers": 1,
            "num_speaker_layers": 4,
            "speaker_block": "conv",
            "speaker_hidden_size": 256,
            "speaker_embedding_size": 192,
            "embedding_batch_norm": True,
            "frame_activity": True,
            "contrastive_scale": 4.0,
        }
        return cls(**values | overrides)

    @classmethod
    def small_v1(cls, **overrides: Any) -> "CSCConfig":
        """The `small` of the first release: half-overlapping segments of a spectrogram with a hop of 8 ms."""
        values: dict[str, Any] = {
            "front_end": "stft",
            "conv_kernel": 512,
            "conv_stride": 128,
            "hidden_size": 96,
            "lstm_hidden_size": 96,
            "segment_length": 16,
            "low_dim": 4,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_separation_layers": 1,
            "num_speaker_layers": 1,
            "speaker_embedding_size": 192,
        }
        return cls(**values | overrides)

    @classmethod
    def base(cls, **overrides: Any) -> "CSCConfig":
        """Learnt filters on the raw waveform and deep branches, like the paper's models, for GPUs."""
        return cls(**{"frame_activity": True} | overrides)

    def num_frames(self, num_samples):
        """Frames of the front end for a waveform of `num_samples` samples (`int` or integer tensor). Each sample lies
        in `conv_kernel / conv_stride` of them."""
        return _ceil_div(num_samples, self.conv_stride) + self.conv_kernel // self.conv_stride - 1

    def num_encoder_frames(self, num_samples):
        """Frames of the encoder for a waveform of `num_samples` samples (`int` or integer tensor). Each joins
        `frame_stride` frames of the front end."""
        return _ceil_div(self.num_frames(num_samples), self.frame_stride)

    def num_segments(self, num_samples):
        """Segments of a waveform of `num_samples` samples (`int` or integer tensor). Each frame of the encoder lies in
        two of them, or in one if segments do not overlap."""
        overlap = self.segment_length // self.segment_hop
        return _ceil_div(self.num_encoder_frames(num_samples), self.segment_hop) + overlap - 1

    def num_activity_frames(self, num_samples):
        """Frames of `source_frame_activity` for a waveform of `num_samples` samples (`int` or integer tensor). Frame
        `f` stands for the samples from `f * activity_stride` up to `(f + 1) * activity_stride`."""
        return _ceil_div(num_samples, self.activity_stride)

    @property
    def activity_stride(self) -> int:
        """Samples that a frame of `source_frame_activity` stands for: one frame of the encoder, or as many of them as
        fit into 512 samples, 32 ms at 16 kHz."""
        stride = self.frame_stride * self.conv_stride
        return stride * max(1, 512 // stride)

    @property
    def segment_vector_size(self) -> int:
        """Size of the vectors in `source_hidden_states`."""
        return self.speaker_hidden_size or self.hidden_size

    @property
    def segment_hop(self) -> int:
        """Frames of the encoder between the starts of two segments."""
        return self.segment_length // 2 if self.segment_overlap else self.segment_length

    @property
    def segment_samples(self) -> int:
        """The most samples whose frames fit into one segment."""
        num_frames = self.segment_length * self.frame_stride
        return max(num_frames + 1 - self.conv_kernel // self.conv_stride, 1) * self.conv_stride

    @property
    def segment_stride(self) -> int:
        """Samples between the starts of two segments."""
        return self.segment_hop * self.frame_stride * self.conv_stride

    def segment_centres(self, num_samples: int) -> range:
        """The sample near which each segment of a waveform of `num_samples` samples is centred: `s * segment_stride`
        for segment `s`, and half a stride later if segments do not overlap. The last ones can lie after the end."""
        first = 0 if self.segment_overlap else self.segment_stride // 2
        return range(first, first + self.num_segments(num_samples) * self.segment_stride, self.segment_stride)

    def validate_architecture(self):
        """Raises a `ValueError` for values that no model can be built from."""
        positive = (
            "sampling_rate conv_kernel conv_stride hidden_size lstm_hidden_size segment_length low_dim "
            "num_attention_heads num_hidden_layers num_separation_layers num_speaker_layers num_sources "
            "speaker_embedding_size classifier_proj_size layer_norm_eps initializer_range contrastive_scale "
            "si_snr_threshold xvector_scale num_mel_bins frame_stride mask_hidden_size speaker_hidden_size "
            "num_recording_classes recording_scale"
        )
        for name in positive.split():
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")
        not_negative = (
            "separation_loss_weight contrastive_loss_weight activity_loss_weight frame_activity_loss_weight "
            "band_mask_loss_weight "
            "recording_loss_weight xvector_margin"
        )
        for name in not_negative.split():
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")
        for name in ("hidden_dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in [0, 1), got {getattr(self, name)}.")
        if self.front_end not in ("conv", "stft"):
            raise ValueError(f"`front_end` must be 'conv' or 'stft', got {self.front_end!r}.")
        if self.front_end != "stft":
            for name, default in (("num_mel_bins", None), ("subtract_mean", False), ("mask_hidden_size", None)):
                if getattr(self, name) != default:
                    raise ValueError(
                        f"`{name}` needs `front_end` 'stft', got {getattr(self, name)!r} with {self.front_end!r}."
                    )
        if self.frame_stride > 1 and self.mask_hidden_size is None:
            raise ValueError(
                f"`frame_stride` {self.frame_stride} needs `front_end` 'stft' and a `mask_hidden_size`: without "
                "it, the frames that are joined would have one mask."
            )
        if self.speaker_block not in ("galr", "conv"):
            raise ValueError(f"`speaker_block` must be 'galr' or 'conv', got {self.speaker_block!r}.")
        if self.speaker_block == "conv" and (self.segment_overlap or self.num_mel_bins is None):
            raise ValueError(
                "`speaker_block` 'conv' needs `num_mel_bins`, which it reads, and `segment_overlap` False, because it "
                f"convolves over all frames in turn; got {self.num_mel_bins} and {self.segment_overlap}."
            )
        if self.speaker_block == "galr" and self.segment_vector_size != self.hidden_size:
            raise ValueError(
                f"`speaker_hidden_size` {self.speaker_hidden_size} needs `speaker_block` 'conv': blocks 'galr' have "
                f"`hidden_size` {self.hidden_size}."
            )
        if self.local_layer not in ("lstm", "mingru"):
            raise ValueError(f"`local_layer` must be 'lstm' or 'mingru', got {self.local_layer!r}.")
        if self.conv_kernel % self.conv_stride or self.conv_kernel < 2 * self.conv_stride:
            raise ValueError(
                f"`conv_kernel` must be a multiple of `conv_stride`, at least twice it, got {self.conv_kernel} and "
                f"{self.conv_stride}."
            )
        if self.segment_overlap and self.segment_length % 2:
            raise ValueError(f"`segment_length` must be even (segments overlap by half), got {self.segment_length}.")
        if self.low_dim > self.segment_length:
            raise ValueError(
                f"`low_dim` must not exceed `segment_length`, got {self.low_dim} and {self.segment_length}."
            )
        for name in ("hidden_size", "segment_vector_size", "speaker_embedding_size"):
            if getattr(self, name) % self.num_attention_heads:
                raise ValueError(
                    f"`{name}` must be a multiple of `num_attention_heads`, got {getattr(self, name)} and "
                    f"{self.num_attention_heads}."
                )
        if self.hidden_size % 2:
            raise ValueError(f"`hidden_size` must be even (sine and cosine positions), got {self.hidden_size}.")


CSCConfig._auto_class = "AutoConfig"  # saving a configuration also saves this file

PRESETS: dict[str, Callable[..., CSCConfig]] = {
    "tiny": CSCConfig.tiny,
    "small": CSCConfig.small,
    "small_v1": CSCConfig.small_v1,
    "base": CSCConfig.base,
}
"""Constructors of the named configurations, by name."""

__all__ = ["PRESETS", "CSCConfig"]
