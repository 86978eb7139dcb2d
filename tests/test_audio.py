# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
import io
import sys
import types

import numpy as np
import pytest
import soundfile
import torch

from csc_hf.audio import LIMITS, NotFiniteError, decode_audio, read_blocks, resample


def tone(frequency: float, seconds: float = 0.5, rate: int = 16000) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def encode(samples: np.ndarray, rate: int = 16000, **options) -> bytes:
    """`samples`: (samples,) or (samples, channels)."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"format": "WAV", "subtype": "FLOAT"}, 1e-7),
        ({"format": "FLAC"}, 1e-4),
        ({"format": "OGG", "subtype": "VORBIS"}, 0.1),
    ],
)
def test_formats(options, tolerance):
    samples = tone(300)
    decoded = decode_audio(encode(samples, **options))
    assert decoded.dtype == np.float32
    assert decoded.shape == samples.shape
    assert np.abs(decoded - samples).max() < tolerance


def test_every_form_of_the_same_audio_gives_the_same_samples(tmp_path):
    content = encode(tone(300), format="FLAC")
    path = tmp_path / "[1] a.flac"
    path.write_bytes(content)
    expected = decode_audio(content)

    class AudioDecoder:
        def get_all_samples(self):
            return types.SimpleNamespace(data=torch.from_numpy(expected)[None], sample_rate=16000)

    forms = [
        path,
        str(path),
        open(path, "rb"),
        io.BytesIO(content),
        bytearray(content),
        memoryview(content),
        {"bytes": content, "path": None},
        {"bytes": content, "path": "not/there.flac"},  # a path beside bytes is only a name
        {"bytes": None, "path": str(path)},
        {"array": expected.astype(np.float64), "sampling_rate": 16000},
        {"array": expected.tolist(), "sampling_rate": 16000},
        {"raw": expected, "sampling_rate": 16000},
        {"array": torch.from_numpy(expected), "sampling_rate": 16000},
        torch.from_numpy(expected).requires_grad_(),
        AudioDecoder(),
        expected,
    ]
    for form in forms:
        decoded = decode_audio(form)
        assert decoded.dtype == np.float32
        np.testing.assert_array_equal(decoded, expected)
    half = torch.from_numpy(expected).to(torch.bfloat16)
    np.testing.assert_allclose(decode_audio(half), expected, atol=0.01)


def test_channels_are_averaged_and_never_time():
    left, right = tone(300), np.zeros(8000)
    for stereo in (
        encode(np.stack([left, right], axis=1), format="WAV", subtype="FLOAT"),
        {"array": np.stack([left, right]), "sampling_rate": 16000},
        {"array": np.stack([left, right], axis=1), "sampling_rate": 16000},  # as soundfile.read gives it
        torch.from_numpy(np.stack([left, right], axis=1)),
    ):
        np.testing.assert_allclose(decode_audio(stereo), left / 2, atol=1e-6)
    for mono in (left[None], left[:, None]):
        np.testing.assert_allclose(decode_audio(mono), left, atol=1e-6)
    for ambiguous in ((2, 3), (16, 16), (17, 40)):
        with pytest.raises(ValueError, match=r"shape \(.*Average the channels"):
            decode_audio(np.zeros(ambiguous))


@pytest.mark.parametrize("rate", [1000, 8000, 16001, 44100, 44099, 999_983])
def test_resampling_keeps_pitch_level_and_length(rate):
    """Also for rates that share no factor with 16000, in memory and time that do not grow with the rate."""
    resampled = decode_audio(encode(tone(440, rate=rate), rate, format="WAV", subtype="FLOAT"))
    assert abs(len(resampled) - 8000) <= 10  # half a second at 1000 Hz is what it is
    inner = slice(1000, 7000)  # the filter needs its surroundings
    np.testing.assert_allclose(resampled[inner], tone(440)[inner], atol=1e-3)


def test_resampling_keeps_the_band_and_adds_no_alias():
    """Up to 7 kHz the band is flat, and what is above 8 kHz is 60 dB down."""
    for frequency, level in ((7000, 1.0), (9000, 0.0), (15000, 0.0)):
        resampled = resample(tone(frequency, rate=48000), 48000, 16000)[1000:-1000]
        np.testing.assert_allclose(np.abs(resampled).max(), 0.5 * level, atol=1e-3)


def test_rates_out_of_range_are_refused():
    for rate in (999, 1_000_001, 16000.5):
        with pytest.raises(ValueError, match="an array: cannot resample from .* 1000 to 1000000"):
            decode_audio({"array": tone(300), "sampling_rate": rate})
    with pytest.raises(ValueError, match=r"no samples at 16000 Hz"):
        decode_audio({"array": tone(300)[:10], "sampling_rate": 1_000_000})


@pytest.mark.parametrize("rate", [16000, 44100])
def test_blocks_are_the_whole(tmp_path, monkeypatch, rate):
    whole = decode_audio(encode(np.stack([tone(300, rate=rate)] * 3, axis=1), rate, format="FLAC"))
    monkeypatch.setattr("csc_hf.audio.BLOCK_SAMPLES", 3000)
    (tmp_path / "a.flac").write_bytes(encode(np.stack([tone(300, rate=rate)] * 3, axis=1), rate, format="FLAC"))
    blocks = list(read_blocks(tmp_path / "a.flac"))
    assert len(blocks) > 5 and max(map(len, blocks)) <= 1000
    np.testing.assert_allclose(np.concatenate(blocks), whole, atol=1e-6)


def with_length(content: bytes, length: bytes) -> bytes:
    """A WAV file with these four bytes for the lengths of file and data."""
    data = content.index(b"data")
    return content[:4] + length + content[8 : data + 4] + length + content[data + 8 :]


def piped(content: bytes) -> bytes:
    """A FLAC file whose header does not say how many samples follow."""
    return content[:21] + bytes([content[21] & 0xF0, 0, 0, 0, 0]) + content[26:]


NOISE = np.random.default_rng(0).normal(0, 0.1, 16001)  # FLAC of a tone is too small to be cut
WAV, FLAC = encode(NOISE, format="WAV"), encode(NOISE, format="FLAC")
GSM = encode(NOISE, format="WAV", subtype="GSM610")


@pytest.mark.parametrize(
    ("content", "frames"),
    [
        (piped(FLAC), 16001),
        (with_length(WAV, b"\xff\xff\xff\xff"), 16001),
        (with_length(WAV, b"\xff\xff\xff\x7f"), 16001),
        (WAV[:9000], (9000 - 44) // 2),
        (GSM, 16640),  # whole blocks of 320
        (GSM[:1500], 7360),
    ],
)
def test_what_is_there_is_decoded_whatever_the_header_says(tmp_path, monkeypatch, content, frames):
    monkeypatch.setattr("csc_hf.audio.BLOCK_SAMPLES", 3000)
    (tmp_path / "a").write_bytes(content)
    for audio in (content, tmp_path / "a"):
        decoded = decode_audio(audio)
        assert decoded.shape == (frames,)
        assert np.corrcoef(decoded[:4000], NOISE[:4000])[0, 1] > 0.5  # GSM is coarse


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (FLAC[: len(FLAC) // 2], "lost sync.* damaged or cut off after 0.2 s"),
        (piped(FLAC)[: len(FLAC) // 2], "damaged or cut off"),
        (with_length(WAV, b"\0\0\0\0"), "no samples"),
    ],
)
def test_damaged_files_are_named(tmp_path, monkeypatch, content, message):
    monkeypatch.setattr("csc_hf.audio.BLOCK_SAMPLES", 3000)
    (tmp_path / "broken").write_bytes(content)
    with pytest.raises(ValueError, match=f"/broken'.*{message}"):
        decode_audio(tmp_path / "broken")


def test_a_file_shorter_than_its_header_says_is_told(caplog):
    content = encode(NOISE, format="MP3", subtype="MPEG_LAYER_III")
    assert decode_audio(content).shape == (16001,)
    assert not caplog.records
    assert 0 < len(decode_audio(content[: len(content) // 2])) < 16001
    assert "of the 16001 samples" in caplog.text


def test_no_file_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(LIMITS, "max_seconds", 0.75)
    monkeypatch.setattr("csc_hf.audio.BLOCK_SAMPLES", 4096)
    soundfile.write(tmp_path / "long.flac", NOISE, 16000)
    with pytest.raises(ValueError, match="long.flac' is longer than .*read_blocks"):
        decode_audio(tmp_path / "long.flac")
    assert sum(map(len, read_blocks(tmp_path / "long.flac"))) == 16001


@pytest.mark.parametrize("rate", [16000, 44100])
def test_only_finite_samples_are_given(tmp_path, rate):
    samples = tone(300)
    for bad in (np.nan, np.inf, -np.inf, 1e300):
        samples[-1] = bad
        with pytest.raises(NotFiniteError, match="an array holds NaN or infinite"):
            decode_audio({"array": samples, "sampling_rate": rate})
    soundfile.write(tmp_path / "bad.wav", samples, rate, subtype="DOUBLE")
    with pytest.raises(NotFiniteError, match="bad.wav'"):
        decode_audio(tmp_path / "bad.wav")


def test_undecodable_audio_names_both_decoders():
    with pytest.raises(ValueError, match="10 bytes of audio: soundfile: .*torchcodec: "):
        decode_audio({"bytes": b"not audio!", "path": None})


def test_torchcodec_decodes_what_soundfile_cannot(tmp_path, monkeypatch):
    """With a stand-in for torchcodec, which needs FFmpeg."""
    (tmp_path / "torchcodec").mkdir()
    (tmp_path / "torchcodec" / "__init__.py").touch()
    (tmp_path / "torchcodec" / "decoders.py").write_text(
        "import types, torch\n"
        "class AudioDecoder:\n"
        "    def __init__(self, source):\n"
        "        if source != b'm4a': raise RuntimeError('torchcodec cannot either')\n"
        "    def get_all_samples(self):\n"
        "        return types.SimpleNamespace(data=torch.tensor([[1.0] * 8, [0.0] * 8]), sample_rate=16000)\n"
    )
    for name in [name for name in sys.modules if name.split(".")[0] == "torchcodec"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        np.testing.assert_array_equal(decode_audio(b"m4a"), np.full(8, 0.5, dtype=np.float32))
        with pytest.raises(ValueError, match="soundfile: .*torchcodec cannot either"):
            decode_audio(b"mp5")
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchcodec"]:
            del sys.modules[name]


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ("no/such.wav", "no audio file at 'no/such.wav'"),
        ({"path": None, "bytes": None}, "neither"),
        ({"array": np.zeros(4)}, "sampling_rate"),
        (np.zeros(4, dtype=np.int16), "int16"),
        (np.zeros((1, 1, 4)), r"\(1, 1, 4\)"),
        (np.zeros(0), "no samples"),
        (encode(np.zeros(0), format="WAV"), "no samples"),
        (7, "int"),
        (torch.zeros(4, dtype=torch.int16), "int16"),
        (io.StringIO("text"), "binary mode"),
    ],
)
def test_bad_input_is_told(audio, message):
    with pytest.raises(ValueError, match=message):
        decode_audio(audio)


def test_channels_whose_sum_overflows_are_averaged():
    loud = np.full((1000, 2), 3e38, dtype=np.float32)
    np.testing.assert_array_equal(decode_audio(loud), loud[:, 0])
