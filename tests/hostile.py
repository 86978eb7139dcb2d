# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Strategies of hypothesis for audio that strangers could send: odd waveforms, damaged files, headers that lie."""

import functools
import io
import struct

import numpy as np
import soundfile
from hypothesis import strategies as st

RATE = 16000

FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "wav-float": ("WAV", "FLOAT"),
    "wav-gsm": ("WAV", "GSM610"),
    "flac": ("FLAC", "PCM_16"),
    "vorbis": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "FLOAT"),
    "caf": ("CAF", "ALAC_16"),
    "w64": ("W64", "PCM_24"),
    "rf64": ("RF64", "PCM_16"),
    "voc": ("VOC", "PCM_16"),
}
"""Ten formats of files and more, by name: what soundfile calls format and subtype."""

BAD = [np.nan, np.inf, -np.inf]


@functools.cache
def valid_file(name: str, channels: int = 1) -> bytes:
    """An audio file of 3000 samples."""
    file = io.BytesIO()
    noise = np.random.default_rng(0).normal(0, 0.1, (3000, channels))
    container, subtype = FORMATS[name]
    soundfile.write(file, noise, RATE, format=container, subtype=subtype)
    return file.getvalue()


@st.composite
def damaged_files(draw) -> bytes:
    """Files of all formats: cut, with bytes, numbers and stretches changed, in the header above all; or no audio at
    all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    name = draw(st.sampled_from(sorted(FORMATS)))
    content = bytearray(valid_file(name, 1 if name == "wav-gsm" else draw(st.sampled_from([1, 2]))))
    for _ in range(draw(st.integers(0, 4))):
        end = len(content) if draw(st.booleans()) else min(len(content), 120)
        at = draw(st.integers(0, max(end - 1, 0)))
        change = draw(st.sampled_from(["cut", "byte", "number", "insert", "drop", "zeros"]))
        if change == "cut":
            del content[at:]
        elif change == "byte":
            content[at : at + 1] = bytes([draw(st.sampled_from([0, 1, 127, 128, 255]) | st.integers(0, 255))])
        elif change == "number":
            value = draw(st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 10**9]) | st.integers(0, 2**32 - 1))
            content[at : at + 4] = struct.pack(draw(st.sampled_from(["<I", ">I"])), value)
        elif change == "insert":
            content[at:at] = draw(st.binary(min_size=1, max_size=16))
        elif change == "drop":
            del content[at : at + draw(st.integers(1, 64))]
        else:
            content[at : at + 256] = bytes(len(content[at : at + 256]))
    return bytes(content)


@st.composite
def wav_with_header(draw) -> tuple[bytes, int, int]:
    """A WAV file of a few samples whose header gives any rate, channels, and length; with the first two."""
    rate = draw(st.sampled_from([1, 999, 1000, 8000, 44100, 10**6, 10**9]) | st.integers(0, 2**32 - 1))
    channels = draw(st.sampled_from([1, 2, 64, 65, 1024]) | st.integers(0, 65535))
    length = draw(st.sampled_from([0, 2**31 - 1, 2**32 - 1]) | st.integers(0, 2**32 - 1))
    data = draw(st.binary(max_size=2000))
    depth = 16
    align = channels * depth // 8 % 65536
    header = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", length, b"WAVE", b"fmt ", 16, 1, channels, rate,
                         rate * align % 2**32, align, depth, b"data", length)  # fmt: skip
    return header + data, rate, channels


@st.composite
def waveforms(draw, max_samples: int = 5000, finite: bool = False) -> np.ndarray:
    """Waveforms (samples,), float32: silence, constants, full scale, tiny, huge, clicks, steps, noise, rumble; unless
    `finite`, NaN or infinity."""
    lengths = st.sampled_from([0, 1, 2, 255, 256, 1007, 1008, 1009, 3000]) | st.integers(0, max_samples)
    length = draw(lengths)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["zeros", "constant", "clipped", "noise", "click", "alternating", "steps", "rumble"]))
    level = draw(st.sampled_from([1e-45, 1e-38, 1e-20, 1e-8, 1e-3, 1.0, 32768.0, 1e10, 1e19, 1e30, 3e38]))
    samples = np.zeros(length)
    if kind == "constant":
        samples += draw(st.sampled_from([1.0, -1.0]))
    elif kind == "clipped":
        samples = np.clip(100 * rng.standard_normal(length), -1, 1)
    elif kind == "noise":
        samples = np.clip(rng.standard_normal(length) / 4, -1, 1)
    elif kind == "click" and length:
        samples[rng.integers(length)] = 1
    elif kind == "alternating":
        samples = np.where(np.arange(length) % 2, 1.0, -1.0)
    elif kind == "steps":
        samples = np.repeat(rng.uniform(-1, 1, length // 500 + 1), 500)[:length]
    elif kind == "rumble":
        samples = np.sin(2 * np.pi * draw(st.floats(0.01, 20)) * np.arange(length) / RATE + draw(st.floats(0, 6)))
    samples = (level * samples).astype(np.float32)
    if not finite and length and draw(st.integers(0, 4)) == 0:
        samples[draw(st.integers(0, length - 1))] = draw(st.sampled_from(BAD))
    return samples
