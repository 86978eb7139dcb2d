# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
import io
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from csc_hf.audio import decode_audio


def tone(frequency: float, seconds: float = 0.5, rate: int = 16000) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def encode(samples: np.ndarray, rate: int = 16000, **options) -> bytes:
    """`samples` (T,) or (T, channels)."""
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
    path = tmp_path / "a.flac"
    path.write_bytes(content)
    expected = decode_audio(content)
    forms = [
        path,
        str(path),
        bytearray(content),
        memoryview(content),
        {"bytes": content, "path": None},
        {"bytes": content, "path": "not/there.flac"},  # a path beside bytes is only a name
        {"bytes": None, "path": str(path)},
        {"array": expected.astype(np.float64), "sampling_rate": 16000},
        {"array": expected.tolist(), "sampling_rate": 16000},
        expected,
    ]
    for form in forms:
        np.testing.assert_array_equal(decode_audio(form), expected)


def test_channels_are_averaged():
    left, right = tone(300), np.zeros(8000)
    for stereo in (
        encode(np.stack([left, right], axis=1), format="WAV", subtype="FLOAT"),
        {"array": np.stack([left, right]), "sampling_rate": 16000},
    ):
        np.testing.assert_allclose(decode_audio(stereo), left / 2, atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 44100])
def test_resampling_keeps_pitch_level_and_length(rate):
    resampled = decode_audio(encode(tone(440, rate=rate), rate, format="WAV", subtype="FLOAT"))
    assert resampled.shape == (8000,)
    inner = slice(500, -500)  # the filter needs its surroundings
    np.testing.assert_allclose(resampled[inner], tone(440)[inner], atol=0.01)
    other_rate = decode_audio({"array": tone(440), "sampling_rate": 16000}, sampling_rate=rate)
    np.testing.assert_allclose(other_rate[1500:-1500], tone(440, rate=rate)[1500:-1500], atol=0.01)


def test_undecodable_audio_names_both_decoders():
    with pytest.raises(ValueError, match="10 bytes of audio: soundfile: .*torchcodec: "):
        decode_audio({"bytes": b"not audio!", "path": None})


def test_torchcodec_decodes_what_soundfile_cannot(tmp_path, monkeypatch):
    """With a stand-in for torchcodec, which needs FFmpeg: (channels, T) tensors, a rate of its own."""
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
    ],
)
def test_bad_input_is_told(audio, message):
    with pytest.raises(ValueError, match=message):
        decode_audio(audio)


def test_import_is_light():
    code = (
        "import sys, csc_hf.audio, csc_hf.data.mixing; "
        "print(*{'torch', 'torchaudio', 'torchcodec', 'soundfile', 'datasets'} & {*sys.modules})"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
    )
