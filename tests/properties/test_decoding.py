# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""`decode_audio` and `read_blocks` take anything, and give finite float32 samples or a ValueError."""

import functools
import io
import types

import av
import numpy as np
import pytest
import torch
from hostile import BAD, RATE, damaged_files, valid_file, wav_with_header, waveforms
from hypothesis import given
from hypothesis import strategies as st
from test_audio import AV_FILES, written_by_av

from csc_hf.audio import LIMITS, NotFiniteError, decode_audio, read_blocks, read_live
from csc_hf.long_audio import open_recording


def decode_or_refuse(audio, sampling_rate=RATE) -> np.ndarray | None:
    """The samples, checked; None if the audio is refused with a ValueError that says something."""
    try:
        samples = decode_audio(audio, sampling_rate)
    except ValueError as error:
        assert len(str(error)) > 15
        return None
    assert samples.dtype == np.float32 and samples.ndim == 1 and len(samples) > 0
    assert np.isfinite(samples).all()
    assert len(samples) <= LIMITS.max_seconds * sampling_rate
    return samples


@given(damaged_files(), st.sampled_from([8000, RATE, 48000]))
def test_damaged_files(content, sampling_rate):
    samples = decode_or_refuse(content, sampling_rate)
    try:
        blocks = list(read_blocks({"bytes": content, "path": "a.flac"}, sampling_rate))
    except ValueError:
        assert samples is None
        return
    total = sum(map(len, blocks))
    assert total == (0 if samples is None else len(samples))


@given(damaged_files())
def test_a_damaged_file_is_what_its_bytes_are(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "damaged.audio"
    path.write_bytes(content)
    of_bytes, of_file = decode_or_refuse(content), decode_or_refuse(path)
    assert (of_bytes is None) == (of_file is None)
    if of_bytes is not None:
        np.testing.assert_array_equal(of_bytes, of_file)


@given(wav_with_header())
def test_a_header_that_lies_allocates_nothing(file):
    content, rate, channels = file
    samples = decode_or_refuse(content)
    if not LIMITS.min_rate <= rate <= LIMITS.max_rate or not 1 <= channels <= LIMITS.max_channels:
        assert samples is None
    elif samples is not None:  # no more than is there
        assert len(samples) <= (len(content) - 44) / 2 / channels * RATE / rate + 1


FLOATS = ["float16", "float32", "float64", "longdouble"]
SHAPES = ["(samples,)", "(1, samples)", "(samples, 1)", "(2, samples)", "(samples, 2)", "(1, 1, samples)", "list"]


@given(
    waveforms(),
    st.sampled_from([*FLOATS, "int16", "int32", "uint8", "bool", "complex64", "object"]),
    st.sampled_from(SHAPES),
    st.sampled_from(["numpy", "torch", "dict"]),
)
def test_arrays_of_every_type_and_shape(samples, dtype, shape, form):
    with np.errstate(all="ignore"):
        array = samples.astype(dtype)
    array = {
        "(1, samples)": lambda: array[None],
        "(samples, 1)": lambda: array[:, None],
        "(2, samples)": lambda: np.stack([array, array]),
        "(samples, 2)": lambda: np.stack([array, array], axis=1),
        "(1, 1, samples)": lambda: array[None, None],
        "list": lambda: array.tolist(),
    }.get(shape, lambda: array)()
    audio = array
    if form == "dict" or isinstance(array, list):
        audio = {"array": array, "sampling_rate": RATE}
    elif form == "torch" and dtype not in ("longdouble", "object"):
        audio = torch.from_numpy(array)
    decoded = decode_or_refuse(audio)
    is_float = dtype in FLOATS
    if decoded is None or shape == "list":
        finite = samples.size and np.isfinite(samples).all() and (dtype != "float16" or np.abs(samples).max() < 65504)
        readable = is_float and finite and shape != "(1, 1, samples)"
        assert not readable or ("2" in shape and len(samples) <= 16) or shape == "list"
    else:
        assert is_float and shape != "(1, 1, samples)"
        # Two channels are averaged, time never. Of two samples one above the other, nobody knows.
        assert len(decoded) == len(samples) or (len(samples) == 1 and "2" in shape)


ODD_RATES = [1, 999, 1000, 16001, 44099, 999_983, 10**6, 10**9, "16000", [16000], np.int64(8000), np.nan]


@given(
    st.sampled_from(ODD_RATES)
    | st.integers(-(10**10), 10**10)
    | st.floats()
    | st.none()
    | st.booleans()
    | st.text(max_size=5)
)
def test_every_rate(rate):
    """Whatever rate comes with samples, memory and time are bounded."""
    decoded = decode_or_refuse({"array": np.full(2000, 0.1), "sampling_rate": rate})
    if decoded is not None:
        assert abs(len(decoded) - 2000 * RATE / rate) <= 1
    decode_or_refuse(valid_file("wav"), rate)


@given(waveforms(), st.sampled_from([1000, 8000, 16001, 44100, 48000, 10**6]))
def test_odd_waveforms_at_other_rates(samples, rate):
    finite = np.isfinite(samples).all()
    decoded = decode_or_refuse({"array": samples, "sampling_rate": rate})
    if decoded is not None:
        assert finite
    if not finite:
        with pytest.raises(NotFiniteError):
            decode_audio({"array": samples, "sampling_rate": RATE})


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.binary(max_size=9)
KEYS = st.sampled_from(["array", "raw", "bytes", "path", "sampling_rate", "audio", "x"])


@given(
    st.recursive(
        VALUES | st.sampled_from(BAD),
        lambda values: st.lists(values, max_size=3) | st.dictionaries(KEYS, values, max_size=4),
        max_leaves=8,
    )
)
def test_whatever_a_row_may_hold(value):
    decode_or_refuse(value)


@given(st.integers(0, 3000), st.integers(1, 700), st.sampled_from([RATE, 8000, 44100]))
def test_streams_that_give_little_at_a_time_and_none_that_ends_not(length, step, rate):
    content = valid_file("wav")[: 44 + 2 * length]

    class Pipe(io.RawIOBase):
        def __init__(self, content):
            self.content, self.read_so_far = content, 0

        def read(self, size=-1):
            start, self.read_so_far = self.read_so_far, self.read_so_far + min(step, size)
            return self.content[start : self.read_so_far]

    piped, whole = decode_or_refuse(Pipe(content), rate), decode_or_refuse(content, rate)
    assert (piped is None) == (whole is None)
    if whole is not None:
        np.testing.assert_array_equal(piped, whole)


def test_a_stream_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(LIMITS, "max_bytes", 10**7)
    with pytest.raises(ValueError, match="'endless' holds more than 10000000 bytes: give the path"):
        decode_audio(types.SimpleNamespace(name="endless", read=lambda size: bytes(size)))


def test_a_service_can_lower_the_limits(monkeypatch):
    for field, value, audio, message in (
        ("max_seconds", 0.1, valid_file("flac"), "longer than 0.1 s"),
        ("max_channels", 1, valid_file("flac", 2), "2 channels, and the limit is 1"),
        ("max_rate", 8000, valid_file("flac"), "from 1000 to 8000"),
        ("min_rate", 32000, valid_file("flac"), "from 32000 to 1000000"),
        ("max_bytes", 100, io.BytesIO(valid_file("flac")), "more than 100 bytes"),
    ):
        decode_audio(valid_file("flac", 2))
        with monkeypatch.context() as patch, pytest.raises(ValueError, match=message):
            patch.setattr(LIMITS, field, value)
            decode_audio(audio)


@pytest.mark.parametrize("duration", [None, 0.1, 1e9])
def test_torchcodec_decodes_no_more_than_the_limit(duration):
    """Its header may be wrong about the length, so the limit is part of what is asked for."""

    class Decoder:
        get_all_samples = None  # is not called
        metadata = types.SimpleNamespace(sample_rate=RATE, num_channels=2, duration_seconds_from_header=duration)

        def get_samples_played_in_range(self, start, stop):
            assert start == 0 and stop <= LIMITS.max_seconds + 1
            return types.SimpleNamespace(data=torch.zeros(2, 1).expand(2, int(stop * RATE)), sample_rate=RATE)

    with pytest.raises(ValueError, match="is longer than 21600 s"):
        decode_audio(Decoder())
    Decoder.metadata.num_channels = 65
    with pytest.raises(ValueError, match="65 channels"):
        decode_audio(Decoder())


@given(st.sampled_from(AV_FILES), st.data())
def test_damaged_containers_through_every_door(container_and_codec, data):
    """What PyAV's FFmpeg writes, cut and changed: decoded or refused, whole and by blocks and as a stream."""
    try:
        content = bytearray(av_file(*container_and_codec))
    except av.FFmpegError:
        return
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(content) - 1) | st.integers(0, min(len(content) - 1, 120)))
        if data.draw(st.booleans()):
            content[at] = data.draw(st.integers(0, 255))
        else:
            del content[max(at, 1) :]
    content = bytes(content)
    whole = decode_or_refuse(content)
    of_row = decode_or_refuse({"path": "not/there", "audio": {"bytes": content, "path": None}})
    assert (whole is None) == (of_row is None)
    try:
        opened = open_recording(io.BytesIO(content), RATE)
    except ValueError:
        assert whole is None
    else:
        assert whole is not None and opened.num_samples == len(whole)
    try:
        list(read_live(io.BytesIO(content), b""))
    except ValueError as error:
        assert len(str(error)) > 15


@functools.cache
def av_file(container: str, codec: str, rate: int) -> bytes:
    return written_by_av(container, codec, rate, seconds=0.3)
