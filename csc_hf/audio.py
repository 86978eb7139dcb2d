# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Decode audio to mono float32 at one sampling rate."""

import importlib.util
import io
import os
from collections.abc import Mapping

import numpy as np

SAMPLING_RATE = 16_000
"""Samples per second of every waveform in the package."""

SILENCE_POWER = 1e-8
"""Mean square below which audio counts as silent (-80 dB relative to full scale)."""


def decode_audio(
    audio: Mapping | str | os.PathLike | bytes | bytearray | memoryview | np.ndarray,
    sampling_rate: int = SAMPLING_RATE,
) -> np.ndarray:
    """Decode, mix down to mono and resample.

    Args:
        audio: one of
            - a path, or the bytes of an encoded file (WAV, FLAC, OGG, MP3, ...);
            - `{"bytes": ..., "path": ...}`, as `datasets.Audio(decode=False)` gives it: the bytes if there are any,
              else the file at the path;
            - `{"array": ..., "sampling_rate": ...}`: floats of shape (T,) or (channels, T);
            - a float array of shape (T,) or (channels, T) that already has `sampling_rate`.
        sampling_rate: samples per second of the result.

    Returns:
        float32 array of shape (T,), T >= 1. Channels are averaged. Samples are passed on as they are: a float file may
        hold NaN, and the caller has to look.

    Raises:
        ValueError: the audio cannot be decoded, or holds no samples.
        RuntimeError: the rate differs and torchaudio cannot be imported.
    """
    samples, rate = _read(audio, sampling_rate)
    if samples.ndim == 2:
        samples = samples.mean(axis=0)
    if samples.size == 0:
        raise ValueError(f"{_name(audio)} holds no samples: leave it out")
    if rate != sampling_rate:
        samples = resample(samples, rate, sampling_rate)
    return np.ascontiguousarray(samples, dtype=np.float32)


def _read(audio, sampling_rate: int) -> tuple[np.ndarray, int]:
    """Samples of shape (T,) or (channels, T), and their rate."""
    if isinstance(audio, Mapping):
        if audio.get("array") is not None:
            if audio.get("sampling_rate") is None:
                raise ValueError('audio has an "array" but no "sampling_rate": give both')
            return _check_array(audio["array"]), int(audio["sampling_rate"])
        content = audio.get("bytes") if audio.get("bytes") is not None else audio.get("path")
        if content is None:
            raise ValueError(f'audio with the keys {sorted(audio)} has neither "bytes", "path" nor "array": give one')
        return _decode(content)
    if isinstance(audio, np.ndarray):
        return _check_array(audio), sampling_rate
    if isinstance(audio, str | os.PathLike | bytes | bytearray | memoryview):
        return _decode(audio)
    raise ValueError(
        f"audio is a {type(audio).__name__}: give a path, bytes, an array or a value of a datasets column"
    )


def _check_array(array) -> np.ndarray:
    array = np.asarray(array)
    if array.ndim not in (1, 2) or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"audio array of shape {array.shape} and type {array.dtype}: give floats in [-1, 1] of shape (T,) or "
            "(channels, T)"
        )
    return array


def _decode(content: str | os.PathLike | bytes) -> tuple[np.ndarray, int]:
    """Decode a file or its bytes with soundfile, else with torchcodec."""
    import soundfile

    is_path = isinstance(content, str | os.PathLike)
    if is_path and not os.path.isfile(content):
        raise ValueError(f"no audio file at {os.fspath(content)!r}: check the path")
    try:
        source = content if is_path else io.BytesIO(content)
        samples, rate = soundfile.read(source, dtype="float32", always_2d=True)
        return samples.T, rate
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: headerless .raw files
        detail = getattr(error, "error_string", error)  # without the address of the bytes in memory
        reason = f"cannot decode {_name(content)}: soundfile: {detail}"
    if importlib.util.find_spec("torchcodec") is None:
        raise ValueError(f"{reason}; torchcodec: not installed, install it (with FFmpeg) for formats beyond soundfile")
    try:
        from torchcodec.decoders import AudioDecoder

        decoded = AudioDecoder(os.fspath(content) if is_path else bytes(content)).get_all_samples()
    except Exception as error:  # torchcodec raises RuntimeError, ValueError or OSError, for the file or for FFmpeg
        raise ValueError(f"{reason}; torchcodec: {error}") from error
    return decoded.data.numpy(), decoded.sample_rate


def resample(samples: np.ndarray, rate: int, sampling_rate: int) -> np.ndarray:
    """Change the sampling rate of a waveform (T,) with torchaudio; RuntimeError if that cannot be imported."""
    import torch

    try:
        from torchaudio import functional
    except (ImportError, OSError, RuntimeError) as error:  # a torchaudio built for another torch raises any of them
        raise RuntimeError(
            f"resampling from {rate} to {sampling_rate} Hz needs torchaudio, which cannot be imported ({error}): "
            "install the torchaudio that matches your torch"
        ) from error
    samples = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
    return functional.resample(samples, rate, sampling_rate).numpy()


def power(samples: np.ndarray) -> float:
    """Mean square."""
    return float(np.mean(np.square(samples, dtype=np.float64)))


def _name(audio) -> str:
    """What to call the audio in a message."""
    if isinstance(audio, Mapping):
        audio = audio.get("path") or audio.get("bytes") or "an array"
    if isinstance(audio, bytes | bytearray | memoryview):
        return f"{len(audio)} bytes of audio"
    return "an array" if isinstance(audio, np.ndarray) else repr(os.fspath(audio))
