# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Decode audio to mono float32 at one sampling rate, as a whole or by blocks. No other module touches codecs."""

import contextlib
import io
import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

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

TORCHCODEC_FRAME = 2048
"""Samples in a frame of a codec that torchcodec does not tell of: those of ADPCM and of AAC at low rates."""

CANCELLED = 1 / 4
"""Power of the average of the channels, relative to what the loudest of them would give alone, below which they cancel
each other. It cannot be below 1 otherwise, but for chance."""

EXACT_CODECS = ("pcm_", "flac", "alac", "wavpack", "tta", "ape")
"""What names of codecs begin with that give the samples that were encoded, none before and none behind them."""

AAC_DELAY = 2112
"""Samples that Apple's encoder puts before the beginning, the most of all in use. Decoders take them off, headers may
count them."""

ROUNDED_SECONDS = 0.002
"""By how much a length may be wrong that is written in milliseconds, as in Matroska and FLV, or by
chunks, as in AVI."""

MISSING_SHARE = 0.1
"""Share of what the header says from which on a recording that torchcodec has shortened is refused."""


@dataclass(frozen=True)
class OneChannel:
    """Audio of which one channel is heard, for functions without an argument `channel`.

    Attributes:
        audio: anything that `decode_audio` takes.
        channel: counted from 0, as in NumPy and FFmpeg; None: the average of all.
    """

    audio: Any
    channel: int | None


class NotFiniteError(ValueError):
    """Audio holds NaN or infinite samples."""


def decode_audio(audio: Any, sampling_rate: int = SAMPLING_RATE, channel: int | None = None) -> np.ndarray:
    """Decode, mix down to mono and resample.

    Files are decoded by soundfile, and by PyAV what that cannot read: M4A, MP4, WebM and the like.

    Args:
        audio: one of
            - a path, an open binary file, or the bytes of an encoded file (WAV, FLAC, OGG, MP3, M4A, ...);
            - `{"bytes": ..., "path": ...}`, as `datasets.Audio(decode=False)` gives it: the bytes if there are any,
              else the file at the path;
            - `{"array": ..., "sampling_rate": ...}`: floats of shape (samples,), (channels, samples) or (samples,
              channels); "raw" is another name for "array";
            - a torchcodec `AudioDecoder`, as `datasets.Audio()` gives it;
            - a row of a dataset, `{"audio": ..., ...}`, with any of these as its audio;
            - a float array, tensor or list of numbers of these shapes that already has `sampling_rate`;
            - an `OneChannel` of any of these.
        sampling_rate: samples per second of the result.
        channel: the only channel to hear, counted from 0. None: all of them are averaged; where they cancel each
            other, the loudest is heard, with a warning.

    Returns:
        float32 array (samples,), at least one sample, all finite. What is below 20 Hz is still in it: models, training
        and live streams take that off (`high_pass`).

    Raises:
        ValueError: the audio cannot be decoded, holds no samples, is beyond LIMITS, lacks the channel, or has a shape
            that does not say which axis is time. NotFiniteError: it holds NaN or infinite samples.
        ImportError: the rate differs and soxr cannot be imported.
    """
    blocks, num_samples = [], 0
    for block in read_blocks(audio, sampling_rate, channel):
        num_samples += len(block)
        if num_samples > LIMITS.max_seconds * sampling_rate:
            raise _too_long(_name(audio), LIMITS.max_seconds)
        blocks.append(block)
    if num_samples == 0:
        raise ValueError(f"{_name(audio)} holds no samples at {sampling_rate} Hz: leave it out")
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def read_blocks(
    audio: Any, sampling_rate: int = SAMPLING_RATE, channel: int | None = None, quiet: bool = False
) -> Iterator[np.ndarray]:
    """Decode by blocks, in memory that does not grow with the length of a file.

    Args, errors: see `decode_audio`. Only the blocks together are what `decode_audio` returns; there may be none.
        quiet: give no warnings, since they were given when the same audio was read before.

    Yields:
        float32 arrays (samples,) of any length, all finite.
    """
    name = _name(audio)
    while isinstance(audio, OneChannel):
        channel = audio.channel if channel is None else channel
        audio = audio.audio
    blocks, rate = _open(audio, sampling_rate, _Warnings(name, quiet))
    if not (_is_rate(rate) and _is_rate(sampling_rate)):
        raise ValueError(
            f"{name}: cannot resample from {rate!r} to {sampling_rate!r} Hz, rates must be integers from "
            f"{LIMITS.min_rate} to {LIMITS.max_rate}"
        )
    mono = _mix_down(blocks, channel, _Warnings(name, quiet))
    position = 0
    for block in mono if rate == sampling_rate else resample_blocks(mono, int(rate), int(sampling_rate)):
        finite = np.isfinite(block)
        if not finite.all():
            first = (position + int(finite.argmin())) / sampling_rate
            raise NotFiniteError(
                f"{name} holds NaN or infinite samples, the first at {first:.4f} s: repair it or leave it out"
            )
        position += len(block)
        yield block


def read_live(
    stream: BinaryIO,
    start: bytes,
    sampling_rate: int = SAMPLING_RATE,
    channel: int | None = None,
    seconds: float = 0.1,
) -> Iterator[np.ndarray]:
    """Decode an encoded stream (WAV, FLAC, OGG, MP3, ...) while it comes in, by PyAV.

    Args:
        stream: a binary file that need not be seekable, such as `sys.stdin.buffer`.
        start: what was read of it already, to see its format.
        seconds: length of a block.

    Args, yields, errors: otherwise as of `read_blocks`.
    """
    told = _Warnings("the stream", False)
    reason = (
        f"cannot decode {encoded_format(start)} while it comes in (ffmpeg -i FILE -f s16le -ac 1 -ar {sampling_rate} "
        "- makes raw PCM of it)"
    )
    blocks, rate = _open_with_av(Begun(stream, start), told, reason, seconds=seconds)
    mono = _mix_down(blocks, channel, told)
    yield from mono if rate == sampling_rate else resample_blocks(mono, int(rate), int(sampling_rate))


def encoded_format(start: bytes) -> str | None:
    """What the first bytes of a stream, 2,048 or all if there are fewer, say of its format; None for raw PCM."""
    for name, offset, marks in SIGNATURES:
        if start[offset:].startswith(marks):
            return name
    # A frame of MPEG audio begins with only 11 bits that are set, which PCM may have too. Two in a row tell.
    if (length := _mpeg_frame_bytes(start)) is not None and _mpeg_frame_bytes(start[length:]) is not None:
        return "MP3 or AAC"
    return None


SIGNATURES = (
    ("WAV", 0, (b"RIFF", b"RIFX", b"RF64", b"riff\x2e\x91\xcf\x11")),
    ("FLAC", 0, (b"fLaC",)),
    ("OGG", 0, (b"OggS",)),
    ("MP3", 0, (b"ID3",)),
    ("MP4", 4, (b"ftyp",)),
    ("WebM or Matroska", 0, (b"\x1aE\xdf\xa3",)),
    ("AIFF", 0, (b"FORM",)),
    ("AU", 0, (b".snd",)),
    ("CAF", 0, (b"caff",)),
    ("FLV", 0, (b"FLV\x01",)),
    ("ASF", 0, (b"0&\xb2u\x8ef\xcf\x11",)),
    ("AMR", 0, (b"#!AMR",)),
)
"""Formats, with the place in a file where one of their marks stands."""


def _mpeg_frame_bytes(start: bytes) -> int | None:
    """Length of the frame of MP3 or AAC (ADTS) that begins there; None if none does."""
    if len(start) < 6 or start[0] != 0xFF or start[1] & 0xE0 != 0xE0:
        return None
    if start[1] & 0xF6 == 0xF0:  # ADTS
        length = (start[3] & 3) << 11 | start[4] << 3 | start[5] >> 5
        return length if length > 7 else None
    version, layer, bitrate, rate = start[1] >> 3 & 3, start[1] >> 1 & 3, start[2] >> 4, start[2] >> 2 & 3
    if version == 1 or layer != 1 or bitrate in (0, 15) or rate == 3:  # only layer III
        return None
    table = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
    if version != 3:
        table = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
    hertz = (44100, 48000, 32000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
    return (144 if version == 3 else 72) * table[bitrate - 1] * 1000 // hertz + (start[2] >> 1 & 1)


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
    return np.concatenate(list(resample_blocks([samples], rate, sampling_rate)))


def power(samples: np.ndarray) -> float:
    """Mean square."""
    return float(np.mean(np.square(samples, dtype=np.float64)))


# --- sources of blocks -----------------------------------------------------------------------------------------------


class _Warnings:
    """What is said of a recording that is decoded, but not as its header or its channels promise.

    Attributes:
        name: what to call it, in errors too.
    """

    def __init__(self, name: str, quiet: bool):
        self.name, self._quiet = name, quiet

    def __call__(self, message: str) -> None:
        if not self._quiet:
            logger.warning("%s %s", self.name, message)

    def length(self, decoded: float, promised: float, tolerance: float) -> None:
        """Warn if fewer seconds are decoded than were promised."""
        if decoded < promised - tolerance:
            lost = promised - decoded
            self(f"ends after {decoded:.2f} of the {promised:.2f} s that its header says: {lost:.3f} s are lost")


def is_file(audio: Any) -> bool:
    """Whether audio is an encoded file that can be read again: a path, bytes, or what holds one of both."""
    audio = _content(audio)
    if not isinstance(audio, Mapping):
        return isinstance(audio, FILE_TYPES)
    return all(audio.get(key) is None for key in ("array", "raw"))


def _content(audio: Any) -> Any:
    """What a row of a dataset, or an `OneChannel`, holds."""
    while True:
        if isinstance(audio, OneChannel):
            audio = audio.audio
        elif isinstance(audio, Mapping) and audio.get("audio") is not None:
            audio = audio["audio"]  # before the "path" beside it, which may be a bare name
        else:
            return audio


def _open(audio: Any, sampling_rate: int, told: _Warnings) -> tuple[Iterable[np.ndarray], float]:
    """Blocks of shape (samples,) or (samples, channels), and their rate."""
    audio = _content(audio)
    if isinstance(audio, Mapping):
        array = audio.get("array") if audio.get("array") is not None else audio.get("raw")
        if array is not None:
            if audio.get("sampling_rate") is None:
                raise ValueError('audio has an "array" but no "sampling_rate": give both')
            return [_time_first(array)], audio["sampling_rate"]
        content = audio.get("bytes") if audio.get("bytes") is not None else audio.get("path")
        if content is None:
            raise ValueError(
                f'audio with the keys {sorted(map(str, audio))} has neither "bytes", "path", "array" nor "audio": '
                "give one"
            )
        if not isinstance(content, FILE_TYPES):
            raise ValueError(f"the file of an audio value is {content!r}: give a path or bytes")
        return _open_file(content, told)
    if isinstance(audio, np.ndarray | list | tuple) or hasattr(audio, "is_floating_point"):
        return [_time_first(audio)], sampling_rate
    if hasattr(audio, "get_all_samples"):
        return _decode_all(audio, told)
    if hasattr(audio, "read"):
        return _open_file(read_file(audio), told)
    if isinstance(audio, FILE_TYPES):
        return _open_file(audio, told)
    raise ValueError(
        f"audio is a {type(audio).__name__}: give a path, bytes, an open file, an array or a row of a dataset"
    )


def read_file(file: Any) -> bytes:
    """The rest of an open binary file. Raises ValueError if it is open as text or beyond LIMITS."""
    name = _name(file)
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
    content: str | os.PathLike | bytes | bytearray | memoryview, told: _Warnings
) -> tuple[Iterable[np.ndarray], float]:
    """Open a file or its bytes with soundfile, else with PyAV."""
    import soundfile

    source = os.fspath(content) if isinstance(content, str | os.PathLike) else bytes(content)
    if isinstance(source, str) and not os.path.isfile(source):
        raise ValueError(f"no audio file at {told.name}: check the path")
    try:
        file = soundfile.SoundFile(_Content(source) if isinstance(source, bytes) else source)
        _check_channels(file.channels, told.name)
        if file.frames > 0:
            return _read_file(file, told), file.samplerate
        file.close()  # the header of a WAV from a pipe may say so, and be wrong
        reason = f"{told.name} holds no samples, says its header (soundfile)"
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: headerless .raw files
        detail = getattr(error, "error_string", error)  # without the address of the bytes in memory
        reason = f"cannot decode {told.name}: soundfile: {str(detail).rstrip('.')}"
    # PyAV is given no path, which FFmpeg would take for a URL if it looks like one.
    return _open_with_av(io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb"), told, reason)


class _Content(io.BytesIO):
    """Bytes for libsndfile, which in damaged files seeks to before the beginning. It then stays where it is."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return self.tell()


def _read_file(file, told: _Warnings) -> Iterator[np.ndarray]:
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
                    f"cannot decode {told.name}: soundfile: {detail} It is damaged or cut off after "
                    f"{num_read / file.samplerate:.1f} s or later"
                ) from error
            if len(block) == 0:
                break
            num_read += len(block)
            yield block
        if num_read < file.frames < 2**62:  # above: unknown
            told(f"ends after {num_read} of the {file.frames} samples that its header says")


class Begun(contextlib.nullcontext):
    """A binary stream that cannot be sought in. What was read of it already comes first."""

    def __init__(self, stream: Any, start: bytes):
        super().__init__()
        self._read = getattr(stream, "read1", stream.read)  # which does not wait until all is there
        self._start = start

    def read(self, size: int) -> bytes:
        if self._start:
            given, self._start = self._start[:size], self._start[size:]
            return given
        return self._read(size)


def _open_with_av(
    source: Any, told: _Warnings, reason: str, seconds: float | None = None
) -> tuple[Iterable[np.ndarray], float]:
    """Open a file object with PyAV.

    Args:
        reason: why another decoder cannot read it, or what is being tried.
        seconds: length of the blocks; by default, that of BLOCK_SAMPLES.
    """
    try:
        import av
    except ImportError as error:
        raise ValueError(
            f"{reason}; PyAV, for M4A, MP4, WebM and others, cannot be imported ({error}): pip install av"
        ) from error
    with contextlib.ExitStack() as files:
        files.enter_context(source)
        try:
            # Up to PyAV 18, metadata that is not UTF-8 is an error otherwise; from 19 on, there is no such argument.
            lenient: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
            # A playlist could name other files or servers: none of them is opened.
            container = av.open(source, options={"protocol_whitelist": "none"}, **lenient)
        except Exception as error:  # FFmpeg's own, or Python's for what it makes of damaged files
            raise _av_error(error, reason) from error
        files.enter_context(container)
        frames = _frames(container, reason)
        if (first := next(frames, None)) is None:
            raise ValueError(f"{reason}; PyAV finds no samples: leave it out")
        _check_channels(first.layout.nb_channels, told.name)
        size = BLOCK_SAMPLES // first.layout.nb_channels if seconds is None else round(seconds * first.sample_rate)
        frames = itertools.chain([first], frames)
        return _read_frames(container, frames, told, max(size, 1), files.pop_all()), first.sample_rate


def _frames(container: Any, reason: str) -> Iterator[Any]:
    """Decoded frames of the first audio stream, as interleaved 32-bit floats."""
    import av

    try:
        if not container.streams.audio:
            raise ValueError("no audio in it")
        converter = av.AudioResampler(format="flt")
        stream = container.streams.audio[0]
        if container.format.name == "caf" and stream.codec_context.name.startswith(EXACT_CODECS):
            # FFmpeg would take what the last packet lacks to a whole one off its samples, which are none too many.
            stream.codec_context.flags2 |= av.codec.context.Flags2.skip_manual
        for frame in container.decode(stream):
            yield from converter.resample(frame)
    except Exception as error:
        raise _av_error(error, reason) from error


def _av_error(error: Exception, reason: str) -> ValueError:
    return ValueError(f"{reason}; PyAV: {getattr(error, 'strerror', None) or error}")


def _read_frames(
    container: Any, frames: Iterable[Any], told: _Warnings, size: int, files: contextlib.ExitStack
) -> Iterator[np.ndarray]:
    """Blocks (samples, channels) of `size` samples or a little more. Closes the files at the end."""
    held: list[np.ndarray] = []
    num_held = num_read = rate = longest = 0
    with files:
        for frame in frames:
            rate, longest = frame.sample_rate, max(longest, frame.samples)
            held.append(frame.to_ndarray().reshape(-1, frame.layout.nb_channels))
            num_held += len(held[-1])
            if num_held >= size:
                yield np.concatenate(held)
                num_read, num_held, held = num_read + num_held, 0, []
        if held:
            yield np.concatenate(held)
            num_read += num_held
        stream = container.streams.audio[0]
        is_exact = stream.duration is not None and stream.time_base * rate == 1 and container.format.name != "avi"
        codec = stream.codec_context
        tolerance = _tolerance(
            codec.name, rate, codec.delay or 0, longest, 0.5 / rate if is_exact else ROUNDED_SECONDS
        )
        told.length(num_read / rate, _promised_seconds(container), tolerance)


def _tolerance(codec: str, rate: float, delay: int, frame_samples: int, rounded: float) -> float:
    """Seconds that may be missing by a header without any loss.

    Args:
        delay: samples that the encoder says it has put before the beginning.
        frame_samples: in a frame of the codec, the last of which may be padded.
        rounded: seconds by which the header itself may be wrong.
    """
    if codec.startswith(EXACT_CODECS):
        return rounded
    if codec == "aac":
        delay = max(delay, AAC_DELAY)
    return (delay + frame_samples) / rate + rounded


def _promised_seconds(container: Any) -> float:
    """What the header of a file says of the length of its audio; 0 if nothing, or if FFmpeg guesses by the size."""
    if container.format.name in ("aac", "mp3", "loas", "mpegts", "mpeg", "ac3", "eac3", "dts", "amr"):
        return 0.0
    stream = container.streams.audio[0]
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if (tag := stream.metadata.get("DURATION")) is not None:  # Matroska
        try:
            hours, minutes, seconds = map(float, tag.split(":"))
        except ValueError:
            return 0.0
        return 3600 * hours + 60 * minutes + seconds
    if container.duration is not None and len(container.streams) == 1:
        return container.duration / 1e6
    return 0.0


def _decode_all(decoder: Any, told: _Warnings) -> tuple[list[np.ndarray], float]:
    """What a torchcodec decoder gives, as one block (samples, channels)."""
    metadata, name = getattr(decoder, "metadata", None), told.name
    rate, channels = (getattr(metadata, field, None) for field in ("sample_rate", "num_channels"))
    _check_channels(channels or 1, name)
    seconds = min(LIMITS.max_seconds, TORCHCODEC_SAMPLES / ((rate or SAMPLING_RATE) * (channels or 1)))
    promised = getattr(metadata, "duration_seconds_from_header", None) or 0.0
    if promised > seconds:
        raise _too_long(name, seconds)
    try:
        if hasattr(decoder, "get_samples_played_in_range"):  # the header may be wrong about the length
            samples = decoder.get_samples_played_in_range(0.0, seconds + 1)
        else:
            samples = decoder.get_all_samples()
    except Exception as error:  # RuntimeError, ValueError or OSError, for the file or for FFmpeg
        raise ValueError(f"cannot decode {name}: torchcodec: {error}") from error
    block = samples.data.numpy().T
    _check_channels(block.shape[1], name)
    if len(block) > seconds * samples.sample_rate:
        raise _too_long(name, seconds)
    decoded = len(block) / samples.sample_rate
    codec = getattr(metadata, "codec", None) or ""
    tolerance = _tolerance(codec, samples.sample_rate, 0, TORCHCODEC_FRAME, ROUNDED_SECONDS)
    if decoded < (1 - MISSING_SHARE) * promised - tolerance:
        raise ValueError(
            f"{name}: torchcodec gives {decoded:.2f} of the {promised:.2f} s that the header says: give the file "
            "itself, or its bytes, as datasets does with Audio(decode=False)"
        )
    told.length(decoded, promised, tolerance)
    return [block], samples.sample_rate


def _check_channels(channels: int, name: str) -> None:
    if channels > LIMITS.max_channels:
        raise ValueError(f"{name} has {channels} channels, and the limit is {LIMITS.max_channels}: average them first")


# --- processing of blocks --------------------------------------------------------------------------------------------


def _mix_down(blocks: Iterable[np.ndarray], channel: int | None, told: _Warnings) -> Iterator[np.ndarray]:
    """(samples,) or (samples, channels) to float32 (samples,): one channel, or the average of all; from where they
    cancel each other on, the loudest."""
    energy: np.ndarray | float = 0.0  # of each channel and, behind them, of their average, so far
    for block in blocks:
        wide = block[:, None] if block.ndim == 1 else block
        count = wide.shape[1]
        if channel is not None and not 0 <= channel < count:
            numbers = "0 is the only one" if count == 1 else f"their numbers are 0 to {count - 1}"
            raise ValueError(f"{told.name} has no channel {channel}: {numbers}")
        if channel is not None or count == 1:
            yield _to_float32(wide[:, channel or 0])
            continue
        with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite or NaN is refused
            # In float32, the sum of two channels overflows where their mean does not.
            mean = wide.mean(axis=1, dtype=np.promote_types(wide.dtype, np.float64))
            powers = np.append(wide.var(axis=0, dtype=mean.dtype), mean.var()) if len(wide) else np.zeros(count + 1)
            energy = energy + len(wide) * powers
            loudest = int(energy[:-1].argmax())
            cancelled = energy[-1] < CANCELLED * energy[loudest] / count**2
        if cancelled and powers[loudest] >= SILENCE_POWER:
            channel = loudest
            told(
                f"has channels that cancel each other: channel {channel}, the loudest, is heard instead of their "
                "average (channel=... chooses one)"
            )
            yield _to_float32(wide[:, channel])
        else:
            yield _to_float32(mean)


def _to_float32(samples: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(samples, dtype=np.float32)


def resample_blocks(blocks: Iterable[np.ndarray], rate: int, sampling_rate: int) -> Iterator[np.ndarray]:
    """Change the sampling rate of a waveform that comes in blocks (samples,) with soxr.

    Before its beginning and after its end, the waveform is taken to be its first sample, so that a constant offset
    makes no clicks there.

    Yields:
        float32 (samples,) of any length, also empty.

    Raises:
        ImportError: soxr cannot be imported.
    """
    try:
        import soxr
    except ImportError as error:
        raise ImportError(
            f"resampling from {rate} to {sampling_rate} Hz needs soxr, which cannot be imported: pip install soxr"
        ) from error
    stream = soxr.ResampleStream(rate, sampling_rate, num_channels=1, dtype="float32")
    first = np.float32(0.0)
    begun = False
    with np.errstate(over="ignore", invalid="ignore"):
        for block in blocks:
            block = _to_float32(block)
            if not begun and len(block):
                first, begun = block[0], True
            yield stream.resample_chunk(block - first) + first
        yield stream.resample_chunk(np.zeros(0, dtype=np.float32), last=True) + first


# --- messages --------------------------------------------------------------------------------------------------------


def _too_long(name: str, seconds: float) -> ValueError:
    return ValueError(
        f"{name} is longer than {seconds:g} s, the limit of what is decoded into memory: split it, or read its file "
        "by blocks with csc_hf.audio.read_blocks"
    )


def _name(audio: Any) -> str:
    """What to call the audio in a message."""
    audio = _content(audio)
    if isinstance(audio, Mapping):
        audio = next((audio[key] for key in ("path", "bytes", "array", "raw") if audio.get(key) is not None), audio)
    if isinstance(audio, bytes | bytearray | memoryview):
        return f"{len(audio)} bytes of audio"
    if isinstance(audio, str | os.PathLike):
        return repr(os.fspath(audio))
    if isinstance(getattr(audio, "name", None), str):  # an open file
        return repr(audio.name)
    return "an array" if isinstance(audio, list) or hasattr(audio, "shape") else f"a {type(audio).__name__}"
