# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Decode audio to mono float32 at one sampling rate, as a whole or by blocks. No other module touches codecs."""

import importlib.util
import io
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

SAMPLING_RATE = 16_000
"""Samples per second of every waveform in the package."""

SILENCE_POWER = 1e-8
"""Mean square below which audio counts as silent (-80 dB relative to full scale)."""


@dataclass
class DecodingLimits:
    """What audio may be, whatever its header says. Audio beyond is refused.

    `LIMITS` is the one object that holds, for the whole process. A service that takes files from strangers lowers its
    fields at start: `csc_hf.audio.LIMITS.max_seconds = 600`.

    Attributes:
        max_seconds: seconds that `decode_audio` returns at most: 6 hours, 1.4 GB at 16 kHz. `read_blocks`, whose
            memory does not depend on the length, reads on.
        max_channels: channels of a file at most.
        min_rate: lowest sampling rate, in Hz.
        max_rate: highest sampling rate, in Hz.
        max_bytes: bytes that are read of an open file at most, which may be an endless stream. A path has no such
            limit: its file is read by blocks.
    """

    max_seconds: float = 6 * 3600
    max_channels: int = 64
    min_rate: int = 1_000
    max_rate: int = 1_000_000
    max_bytes: int = 2**31


LIMITS = DecodingLimits()

ARRAY_CHANNELS = 16
"""Channels of an array at most. With it, the shapes (channels, samples) and (samples, channels) can be told apart."""

BLOCK_SAMPLES = 2**20
"""Samples that are decoded at a time, of all channels together."""

FILE_TYPES = (str, os.PathLike, bytes, bytearray, memoryview)
"""What names or holds an encoded file."""

TORCHCODEC_SAMPLES = 2**30
"""Samples of all channels together, 4 GB, that torchcodec decodes at most: it gives a file as a whole."""


class NotFiniteError(ValueError):
    """Audio holds NaN or infinite samples."""


def decode_audio(audio: Any, sampling_rate: int = SAMPLING_RATE) -> np.ndarray:
    """Decode, mix down to mono and resample.

    Args:
        audio: one of
            - a path, an open binary file, or the bytes of an encoded file (WAV, FLAC, OGG, MP3, ...);
            - `{"bytes": ..., "path": ...}`, as `datasets.Audio(decode=False)` gives it: the bytes if there are any,
              else the file at the path;
            - `{"array": ..., "sampling_rate": ...}`: floats of shape (samples,), (channels, samples) or (samples,
              channels); "raw" is another name for "array";
            - a torchcodec `AudioDecoder`, as `datasets.Audio()` gives it;
            - a float array or tensor of these shapes that already has `sampling_rate`.
        sampling_rate: samples per second of the result.

    Returns:
        float32 array (samples,), at least one sample, all finite. Channels are averaged.

    Raises:
        ValueError: the audio cannot be decoded, holds no samples, is beyond LIMITS, or has a shape that does not say
            which axis is time. NotFiniteError: it holds NaN or infinite samples.
        ImportError: the rate differs and soxr cannot be imported.
    """
    blocks, num_samples = [], 0
    for block in read_blocks(audio, sampling_rate):
        num_samples += len(block)
        if num_samples > LIMITS.max_seconds * sampling_rate:
            raise _too_long(_name(audio), LIMITS.max_seconds)
        blocks.append(block)
    if num_samples == 0:
        raise ValueError(f"{_name(audio)} holds no samples at {sampling_rate} Hz: leave it out")
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def read_blocks(audio: Any, sampling_rate: int = SAMPLING_RATE) -> Iterator[np.ndarray]:
    """Decode by blocks, in memory that does not grow with the length of a file.

    Args, errors: see `decode_audio`. Only the blocks together are what `decode_audio` returns; there may be none.

    Yields:
        float32 arrays (samples,) of any length, all finite.
    """
    blocks, rate = _open(audio, sampling_rate)
    if not (_is_rate(rate) and _is_rate(sampling_rate)):
        raise ValueError(
            f"{_name(audio)}: cannot resample from {rate!r} to {sampling_rate!r} Hz, rates must be integers from "
            f"{LIMITS.min_rate} to {LIMITS.max_rate}"
        )
    mono = (_mix_down(block) for block in blocks)
    for block in mono if rate == sampling_rate else _resample(mono, int(rate), int(sampling_rate)):
        if not np.isfinite(block).all():
            raise NotFiniteError(f"{_name(audio)} holds NaN or infinite samples: repair it or leave it out")
        yield block


def _is_rate(value: Any) -> bool:
    """Whether a value is a sampling rate that audio may have."""
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return is_number and bool(LIMITS.min_rate <= value <= LIMITS.max_rate) and value == int(value)


def resample(samples: np.ndarray, rate: int, sampling_rate: int) -> np.ndarray:
    """Change the sampling rate of a waveform (samples,) with soxr.

    Returns:
        float32 (round(samples * sampling_rate / rate),).

    Raises:
        ImportError: soxr cannot be imported.
    """
    return np.concatenate(list(_resample([samples], rate, sampling_rate)))


def power(samples: np.ndarray) -> float:
    """Mean square."""
    return float(np.mean(np.square(samples, dtype=np.float64)))


# --- sources of blocks -----------------------------------------------------------------------------------------------


def _open(audio: Any, sampling_rate: int) -> tuple[Iterable[np.ndarray], float]:
    """Blocks of shape (samples,) or (samples, channels), and their rate."""
    if isinstance(audio, Mapping):
        array = audio.get("array") if audio.get("array") is not None else audio.get("raw")
        if array is not None:
            if audio.get("sampling_rate") is None:
                raise ValueError('audio has an "array" but no "sampling_rate": give both')
            return [_time_first(array)], audio["sampling_rate"]
        content = audio.get("bytes") if audio.get("bytes") is not None else audio.get("path")
        if content is None:
            raise ValueError(f'audio with the keys {sorted(audio)} has neither "bytes", "path" nor "array": give one')
        if not isinstance(content, FILE_TYPES):
            raise ValueError(f"the file of an audio value is {content!r}: give a path or bytes")
        return _open_file(content, _name(audio))
    if isinstance(audio, np.ndarray) or hasattr(audio, "is_floating_point"):
        return [_time_first(audio)], sampling_rate
    if hasattr(audio, "get_all_samples"):
        return _decode_all(audio, _name(audio))
    if hasattr(audio, "read"):
        return _open_file(_read_stream(audio, _name(audio)), _name(audio))
    if isinstance(audio, FILE_TYPES):
        return _open_file(audio, _name(audio))
    raise ValueError(
        f"audio is a {type(audio).__name__}: give a path, bytes, an array or a value of a datasets column"
    )


def _read_stream(file: Any, name: str) -> bytes:
    """The rest of an open file."""
    parts, size = [], 0
    while part := file.read(2**20):
        if not isinstance(part, bytes):
            raise ValueError(f"{name} is open as text: open it in binary mode, 'rb'")
        size += len(part)
        if size > LIMITS.max_bytes:
            raise ValueError(f"{name} holds more than {LIMITS.max_bytes} bytes: give the path of a file instead")
        parts.append(part)
    return b"".join(parts)


def _time_first(array: Any) -> np.ndarray:
    """An array or tensor as floats of shape (samples,) or (samples, channels)."""
    if hasattr(array, "is_floating_point"):  # a tensor; NumPy has no bfloat16
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    try:
        array = np.asarray(array)
    except ValueError as error:  # lists of unequal lengths
        raise ValueError(f"audio cannot be read as an array: {error}") from error
    if array.ndim not in (1, 2) or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"audio array of shape {array.shape} and type {array.dtype}: give floats in [-1, 1] of shape (samples,) "
            "or (channels, samples)"
        )
    if array.ndim == 1 or array.size == 0 or 1 in array.shape:
        return array.reshape(-1)
    first_is_channels, last_is_channels = (size <= ARRAY_CHANNELS for size in array.shape)
    if first_is_channels == last_is_channels:
        raise ValueError(
            f"audio array of shape {array.shape}: one axis must be channels, at most {ARRAY_CHANNELS}, and the other "
            "time, longer than that. Average the channels and give shape (samples,)"
        )
    return array if last_is_channels else array.T


def _open_file(
    content: str | os.PathLike | bytes | bytearray | memoryview, name: str
) -> tuple[Iterable[np.ndarray], float]:
    """Open a file or its bytes with soundfile, else with torchcodec."""
    import soundfile

    source = os.fspath(content) if isinstance(content, str | os.PathLike) else bytes(content)
    if isinstance(source, str) and not os.path.isfile(source):
        raise ValueError(f"no audio file at {name}: check the path")
    try:
        file = soundfile.SoundFile(_Content(source) if isinstance(source, bytes) else source)
        _check_channels(file.channels, name)
        return _read_file(file, name), file.samplerate
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: headerless .raw files
        detail = getattr(error, "error_string", error)  # without the address of the bytes in memory
        reason = f"cannot decode {name}: soundfile: {str(detail).rstrip('.')}"
    if importlib.util.find_spec("torchcodec") is None:
        raise ValueError(f"{reason}; torchcodec: not installed, install it (with FFmpeg) for formats beyond soundfile")
    try:
        from torchcodec.decoders import AudioDecoder

        decoder = AudioDecoder(source)
    except Exception as error:  # torchcodec raises RuntimeError, ValueError or OSError, for the file or for FFmpeg
        raise ValueError(f"{reason}; torchcodec: {error}") from error
    return _decode_all(decoder, name)


class _Content(io.BytesIO):
    """Bytes for libsndfile, which in damaged files seeks to before the beginning. It then stays where it is."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return self.tell()


def _read_file(file, name: str) -> Iterator[np.ndarray]:
    """Blocks (samples, channels) of an open soundfile. Its header may be wrong about the length."""
    import soundfile

    # After each block, soundfile would seek to its end, which fails in a FLAC file of unknown length.
    file.seekable = lambda: False
    length = max(BLOCK_SAMPLES // file.channels, 1)
    num_read = 0
    with file:
        while True:
            try:
                block = file.read(length, dtype="float32", always_2d=True)
            except soundfile.SoundFileError as error:
                detail = getattr(error, "error_string", error)
                raise ValueError(
                    f"cannot decode {name}: soundfile: {detail} It is damaged or cut off after "
                    f"{num_read / file.samplerate:.1f} s or later"
                ) from error
            if len(block) == 0:
                break
            num_read += len(block)
            yield block
        if num_read < file.frames < 2**62:  # above: unknown
            logger.warning("%s ends after %d of the %d samples that its header says", name, num_read, file.frames)


def _decode_all(decoder: Any, name: str) -> tuple[list[np.ndarray], float]:
    """What a torchcodec decoder gives, as one block (samples, channels)."""
    metadata = getattr(decoder, "metadata", None)
    rate, channels = (getattr(metadata, field, None) for field in ("sample_rate", "num_channels"))
    _check_channels(channels or 1, name)
    seconds = min(LIMITS.max_seconds, TORCHCODEC_SAMPLES / ((rate or SAMPLING_RATE) * (channels or 1)))
    if (getattr(metadata, "duration_seconds_from_header", None) or 0) > seconds:
        raise _too_long(name, seconds)
    try:
        if hasattr(decoder, "get_samples_played_in_range"):  # the header may be wrong about the length
            samples = decoder.get_samples_played_in_range(0.0, seconds + 1)
        else:
            samples = decoder.get_all_samples()
    except Exception as error:  # see above
        raise ValueError(f"cannot decode {name}: torchcodec: {error}") from error
    block = samples.data.numpy().T
    _check_channels(block.shape[1], name)
    if len(block) > seconds * samples.sample_rate:
        raise _too_long(name, seconds)
    return [block], samples.sample_rate


def _check_channels(channels: int, name: str) -> None:
    if channels > LIMITS.max_channels:
        raise ValueError(f"{name} has {channels} channels, and the limit is {LIMITS.max_channels}: average them first")


# --- processing of blocks --------------------------------------------------------------------------------------------


def _mix_down(block: np.ndarray) -> np.ndarray:
    """(samples,) or (samples, channels) to float32 (samples,)."""
    with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite or NaN is refused
        # In float32, the sum of two channels overflows where their mean does not.
        mono = block.mean(axis=1, dtype=np.promote_types(block.dtype, np.float64)) if block.ndim == 2 else block
        return np.ascontiguousarray(mono, dtype=np.float32)


def _resample(blocks: Iterable[np.ndarray], rate: int, sampling_rate: int) -> Iterator[np.ndarray]:
    try:
        import soxr
    except ImportError as error:
        raise ImportError(
            f"resampling from {rate} to {sampling_rate} Hz needs soxr, which cannot be imported: pip install soxr"
        ) from error
    stream = soxr.ResampleStream(rate, sampling_rate, num_channels=1, dtype="float32")
    for block in blocks:
        yield stream.resample_chunk(np.ascontiguousarray(block, dtype=np.float32))
    yield stream.resample_chunk(np.zeros(0, dtype=np.float32), last=True)


# --- messages --------------------------------------------------------------------------------------------------------


def _too_long(name: str, seconds: float) -> ValueError:
    return ValueError(
        f"{name} is longer than {seconds:g} s, the limit of what is decoded into memory: split it, or read a WAV or "
        "FLAC file by blocks with csc_hf.audio.read_blocks"
    )


def _name(audio: Any) -> str:
    """What to call the audio in a message."""
    if isinstance(audio, Mapping):
        audio = next((audio[key] for key in ("path", "bytes", "array", "raw") if audio.get(key) is not None), audio)
    if isinstance(audio, bytes | bytearray | memoryview):
        return f"{len(audio)} bytes of audio"
    if isinstance(audio, str | os.PathLike):
        return repr(os.fspath(audio))
    if isinstance(getattr(audio, "name", None), str):  # an open file
        return repr(audio.name)
    return "an array" if isinstance(audio, list) or hasattr(audio, "shape") else f"a {type(audio).__name__}"
