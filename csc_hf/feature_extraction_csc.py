# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Turns recordings into the input of a CSC model: checked, without an offset, float32, padded on the right, with an
attention mask."""

import functools

import numpy as np
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import PaddingStrategy, TensorType, is_torch_tensor, logging

logger = logging.get_logger(__name__)


class CSCFeatureExtractor(SequenceFeatureExtractor):
    r"""
    Turns one recording, or a batch of them, into `input_values` of shape `(batch, samples)`, float32, and an
    `attention_mask` of the same shape.

    A constant offset and what is below 20 Hz is taken off (`high_pass`). The level is kept: the model normalises it,
    so scaling a recording does not change its output. Audio is never resampled or mixed down here, since both would
    hide a mistake; the errors say how to do it.

    Args:
        feature_size (`int`, defaults to 1): Values per time step; a waveform has 1.
        sampling_rate (`int`, defaults to 16000): Sampling rate of the model, in Hz.
        padding_value (`float`, defaults to 0.0): Value of padded samples.
        return_attention_mask (`bool`, defaults to `True`): Whether to return the mask (1 real, 0 padded). Without it
            the model takes padding for silence, so only switch it off if nothing is padded.
        min_samples (`int`, defaults to 1008): Samples in one segment of the model (`config.segment_samples`). Shorter
            audio is padded to it, with an `attention_mask` of 0 there.

    Raises:
        ValueError: If `feature_size` is not 1, `min_samples` is below 1, or `padding_side` is not "right".

    Example:

    ```python
    >>> import numpy as np
    >>> from csc_hf import CSCFeatureExtractor

    >>> extractor = CSCFeatureExtractor()
    >>> short, long = np.zeros(100, dtype=np.float32), np.zeros(16000, dtype=np.float32)
    >>> batch = extractor([short, long], sampling_rate=16000, padding=True, return_tensors="pt")
    >>> batch["input_values"].shape, batch["attention_mask"].sum(-1).tolist()
    (torch.Size([2, 16000]), [100, 16000])

    ```
    """

    model_input_names = ["input_values", "attention_mask"]

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = 16000,
        padding_value: float = 0.0,
        return_attention_mask: bool = True,
        min_samples: int = 1008,
        **kwargs,
    ):
        if feature_size != 1:
            raise ValueError(f"feature_size={feature_size}: a waveform has 1 value per time step; leave it at 1.")
        if min_samples < 1:
            raise ValueError(f"min_samples={min_samples} must be at least 1; use the model's config.segment_samples.")
        super().__init__(
            feature_size=feature_size,
            sampling_rate=sampling_rate,
            padding_value=padding_value,
            return_attention_mask=return_attention_mask,
            **kwargs,
        )
        if self.padding_side != "right":
            raise ValueError(f'padding_side="{self.padding_side}": CSC models need padding_side="right".')
        self.min_samples = min_samples

    def __call__(
        self,
        raw_speech,
        padding: bool | str | PaddingStrategy = False,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | TensorType | None = None,
        sampling_rate: int | None = None,
        is_filtered: bool = False,
    ) -> BatchFeature:
        """
        Args:
            raw_speech: One recording or a list of recordings. A recording is a float array, tensor or list of floats
                of shape `(samples,)`, or carries its sampling rate: `{"array": ..., "sampling_rate": ...}` or an
                `AudioDecoder`, as in rows of `datasets`. An axis for the one channel is accepted.
            padding: `True` or "longest": to the longest of the batch; "max_length": to `max_length`; `False`: none.
                Audio shorter than `min_samples` is always padded to `min_samples`.
            max_length (`int`, *optional*): Samples to pad or truncate to, at least `min_samples`.
            truncation (`bool`): Whether to cut recordings at `max_length`.
            pad_to_multiple_of (`int`, *optional*): Round padded lengths (and `max_length`) up to a multiple of this.
            return_attention_mask (`bool`, *optional*): Overrides the extractor's own setting.
            return_tensors (`str`, *optional*): "pt" or "np".
            sampling_rate (`int`, *optional*): Sampling rate of `raw_speech`, in Hz. Always pass it if the recordings
                do not carry theirs: samples do not show that a rate is wrong.
            is_filtered (`bool`): Whether `raw_speech` has been through `high_pass` before, as the utterances of
                `csc_hf.data` have. It is then left as it is: the filter changes rumble again the second time.

        Returns:
            `BatchFeature` with `input_values` `(batch, samples)` float32 and `attention_mask` `(batch, samples)`
            int32. Without padding, recordings of different lengths give object arrays of one array per recording.

        Raises:
            ValueError: For a wrong sampling rate, more than one channel, integer samples, NaN or infinity, empty
                audio, or a `max_length` below `min_samples`. The message names the recording, the value and the
                remedy.
        """
        if max_length is not None and max_length < self.min_samples:
            raise ValueError(
                f"max_length={max_length} is shorter than one segment of the model; use at least"
                f" min_samples={self.min_samples}."
            )
        if _is_batch(raw_speech):
            if len(raw_speech) == 0:
                raise ValueError("raw_speech is empty: pass at least one recording.")
            recordings = {f"raw_speech[{index}]": recording for index, recording in enumerate(raw_speech)}
        else:
            recordings = {"raw_speech": raw_speech}

        features: dict[str, list[np.ndarray]] = {"input_values": [], "attention_mask": []}
        for name, recording in recordings.items():
            waveform = self._read_waveform(name, recording, sampling_rate)
            if not is_filtered:
                waveform, _ = high_pass(waveform, self.sampling_rate)
            missing = max(0, self.min_samples - len(waveform))
            features["input_values"].append(np.pad(waveform, (0, missing), constant_values=self.padding_value))
            features["attention_mask"].append(np.pad(np.ones(len(waveform), dtype=np.int32), (0, missing)))

        batch = self.pad(
            BatchFeature(features),
            padding=padding,
            max_length=max_length,
            truncation=truncation,
            pad_to_multiple_of=pad_to_multiple_of,
            return_attention_mask=True,  # pads the mask made above
            return_tensors=return_tensors,
        )
        if not (self.return_attention_mask if return_attention_mask is None else return_attention_mask):
            del batch["attention_mask"]
        return batch

    def _read_waveform(self, name: str, recording, sampling_rate: int | None) -> np.ndarray:
        """A checked recording, `(samples,)` float32. Error messages call it `name`."""
        recording, own_rate = _split_rate(name, recording)
        if own_rate is None and sampling_rate is None:
            logger.warning_once(
                f"{type(self).__name__} was not told the sampling_rate of raw_speech and assumes"
                f" {self.sampling_rate} Hz. Pass sampling_rate=...: a wrong rate gives wrong results without an error."
            )
        for rate in (own_rate, sampling_rate):
            if rate is not None and rate != self.sampling_rate:
                raise ValueError(
                    f"{name} has a sampling rate of {rate} Hz, but the model was trained on {self.sampling_rate} Hz;"
                    f" resample it first, for example with soxr.resample(x, {rate}, {self.sampling_rate})."
                )

        samples = _to_numpy(name, recording)
        if samples.size == 0:
            raise ValueError(f"{name} is empty (shape {samples.shape}): leave it out.")
        if samples.dtype.kind in "iub":
            raise ValueError(
                f"{name} holds {samples.dtype} samples, expected floats, usually in [-1, 1]; divide 16-bit PCM by"
                " 32768.0."
            )
        if samples.dtype.kind != "f":
            raise ValueError(f"{name} holds values of type {samples.dtype}, expected floats; decode files first.")
        if samples.ndim == 2 and 1 in samples.shape:  # (1, samples), or (samples, 1) as soundfile reads it
            samples = samples.reshape(-1)
        if samples.ndim != 1:
            raise ValueError(
                f"{name} has shape {samples.shape}, expected one channel (samples,); average the channels of a"
                " multi-channel recording, or pass a batch as a list of one-channel recordings."
            )
        with np.errstate(over="ignore"):  # too large for float32: becomes infinite, and is reported below
            samples = samples.astype(np.float32)
        finite = np.isfinite(samples)
        if not finite.all():
            first = int(np.argmin(finite))
            raise ValueError(
                f"{name} has {samples.size - int(finite.sum())} NaN or infinite samples, the first ({samples[first]})"
                f" at {first}; repair the recording or leave it out."
            )
        return samples


HIGH_PASS_HZ = 20.0
"""Frequency in Hz below which nothing is heard: offsets of converters and slow drifts. Voices begin above 60 Hz."""

FILTERED_AT_A_TIME = 64
"""Samples that `high_pass` computes by one product of matrices."""


def high_pass(
    samples: np.ndarray, sampling_rate: int, state: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """
    Take a constant offset and what is below `HIGH_PASS_HZ` off a waveform, by a Butterworth filter of second order.

    The filter is causal and begins as if the first sample had always been there. So a constant of any level becomes
    exact zeros, and blocks, with the state passed on, become what the whole becomes.

    Args:
        samples: Finite floats (samples,).
        sampling_rate: Of the samples, in Hz.
        state: That of the block before; None or empty at the beginning.

    Returns:
        float32 (samples,), and the state for the next block, float64 (3,): the first sample of all and the two real
        numbers of the filter; empty before the first sample.
    """
    if state is None:
        state = np.zeros(0)
    if len(samples) == 0:
        return np.zeros(0, np.float32), state
    pole, residue, powers, within = _high_pass_matrices(sampling_rate)
    size = FILTERED_AT_A_TIME
    first, held = (float(samples[0]), 0j) if len(state) == 0 else (float(state[0]), complex(state[1], state[2]))
    filtered = np.empty(len(samples), np.float32)
    largest = 3e38  # which bfloat16 holds as well
    for begin in range(0, len(samples), size * 2**14):  # bounds the memory
        part = samples[begin : begin + size * 2**14].astype(np.float64) - first
        rows = np.zeros((-(-len(part) // size), size))
        rows.reshape(-1)[: len(part)] = part
        # The state before each row, of which only this recursion is not a product of matrices.
        step, states = pole**size, [held]
        for gained in (rows @ powers[::-1]).tolist():
            states.append(step * states[-1] + gained)
        values = rows @ within + 2 * (residue * np.array(states[:-1])[:, None] * powers).real
        filtered[begin : begin + len(part)] = values.reshape(-1)[: len(part)].clip(-largest, largest)
        rest = len(part) % size
        held = states[-1]
        if rest:
            held = complex(pole**rest * states[-2] + rows[-1, :rest] @ powers[:rest][::-1])
    return filtered, np.array([first, held.real, held.imag])


@functools.lru_cache
def _high_pass_matrices(sampling_rate: int) -> tuple[complex, complex, np.ndarray, np.ndarray]:
    """The filter as h(0) = gain, h(n) = 2 Re(residue · pole^(n - 1)): pole, residue, the powers of the pole from 0 to
    `FILTERED_AT_A_TIME` - 1, and the matrix that filters a row of so many samples."""
    tangent = np.tan(np.pi * HIGH_PASS_HZ / sampling_rate)  # by the bilinear transform
    gain = 1 / (1 + np.sqrt(2) * tangent + tangent**2)
    a1, a2 = 2 * (tangent**2 - 1) * gain, (1 - np.sqrt(2) * tangent + tangent**2) * gain
    pole = complex(-a1 / 2, np.sqrt(a2 - a1**2 / 4))
    residue = ((-2 - a1) * gain * pole + (1 - a2) * gain) / (2j * pole.imag)
    powers = pole ** np.arange(FILTERED_AT_A_TIME)
    response = np.concatenate([[gain], 2 * (residue * powers[:-1]).real])
    lags = np.arange(FILTERED_AT_A_TIME) - np.arange(FILTERED_AT_A_TIME)[:, None]
    return pole, residue, powers, np.where(lags >= 0, response[lags], 0.0)


def _is_batch(raw_speech) -> bool:
    """A list of numbers is one recording; any other list holds recordings."""
    if not isinstance(raw_speech, (list, tuple)):
        return False
    is_number = len(raw_speech) > 0 and (
        isinstance(raw_speech[0], (int, float)) or getattr(raw_speech[0], "ndim", None) == 0
    )
    return not is_number


def _split_rate(name: str, recording) -> tuple:
    """The samples of a recording, and its sampling rate or `None`."""
    if isinstance(recording, dict):
        if "array" not in recording or "sampling_rate" not in recording:
            raise ValueError(
                f'{name} is a dict with the keys {sorted(recording)}, expected "array" and "sampling_rate"; decode'
                " encoded audio first, for example with soundfile.read."
            )
        return recording["array"], recording["sampling_rate"]
    if hasattr(recording, "get_all_samples"):  # torchcodec's AudioDecoder, from an audio column of datasets
        decoded = recording.get_all_samples()
        return decoded.data, decoded.sample_rate
    return recording, None


def _to_numpy(name: str, samples) -> np.ndarray:
    if is_torch_tensor(samples):
        samples = samples.detach().cpu()
        return (samples.float() if samples.is_floating_point() else samples).numpy()  # NumPy has no bfloat16
    try:
        return np.asarray(samples)
    except ValueError as error:  # lists of unequal lengths
        raise ValueError(f"{name} cannot be read as one waveform (samples,): {error}") from error


CSCFeatureExtractor._auto_class = "AutoFeatureExtractor"  # saving an extractor also saves this file

__all__ = ["CSCFeatureExtractor", "high_pass"]
