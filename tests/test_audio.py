# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
import io
import sys
import types
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile
import torch

import csc_hf.audio
from csc_hf.audio import (
    LIMITS,
    NotFiniteError,
    OneChannel,
    decode_audio,
    encoded_format,
    read_blocks,
    read_live,
    resample,
)


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
        (with_length(WAV, b"\0\0\0\0"), 16001),
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


def test_undecodable_audio_names_both_decoders(monkeypatch):
    with pytest.raises(ValueError, match="10 bytes of audio: soundfile: .*PyAV: Invalid data"):
        decode_audio({"bytes": b"not audio!", "path": None})
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match="10 bytes of audio: soundfile: .*pip install av"):
        decode_audio(b"not audio!")


def written_by_av(container: str, codec: str, rate: int = 16000, channels: int = 1, seconds: float = 2.0) -> bytes:
    """Noise in a file that soundfile may not know."""
    samples = np.random.default_rng(0).normal(0, 0.1, (channels, round(seconds * rate))).astype(np.float32)
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono" if channels == 1 else "stereo")
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=stream.layout.name)
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            output.mux(packet)
    return file.getvalue()


AV_FILES = [
    ("mp4", "aac", 44100),
    ("ipod", "alac", 44100),
    ("ipod", "aac", 8000),
    ("mov", "aac", 48000),
    ("3gp", "aac", 16000),
    ("mp4", "libopus", 48000),
    ("mp4", "libmp3lame", 44100),
    ("mp4", "ac3", 44100),
    ("mp4", "flac", 16000),
    ("webm", "libopus", 48000),
    ("matroska", "aac", 8000),
    ("matroska", "flac", 16000),
    ("matroska", "pcm_s16le", 16000),
    ("flv", "aac", 44100),
    ("flv", "libmp3lame", 44100),
    ("flv", "adpcm_swf", 22050),
    ("adts", "aac", 44100),
    ("caf", "pcm_s16be", 16000),
    ("caf", "alac", 44100),
    ("caf", "flac", 44100),
    ("mov", "alac", 44100),
    ("matroska", "alac", 44100),
    ("matroska", "wavpack", 44100),
    ("avi", "pcm_s16le", 44100),
    ("flv", "pcm_mulaw", 8000),
    ("tta", "tta", 44100),
    ("avi", "libmp3lame", 44100),
    ("mpegts", "aac", 44100),
    ("mpegts", "mp2", 48000),
    ("ac3", "ac3", 48000),
    ("nut", "aac", 44100),
    ("latm", "aac", 44100),
    ("wv", "wavpack", 16000),
    ("wav", "g722", 16000),
    ("wav", "adpcm_g726", 8000),
    ("wav", "adpcm_ms", 16000),
    ("wav", "adpcm_ima_wav", 16000),
    ("wav", "pcm_mulaw", 8000),
    ("wav", "pcm_alaw", 8000),
    ("w64", "pcm_s16le", 16000),
    ("aiff", "pcm_s16be", 16000),
    ("au", "pcm_s16be", 16000),
    ("ogg", "libopus", 48000),
    ("ogg", "flac", 16000),
    ("mp3", "libmp3lame", 16000),
    ("amr", "libopencore_amrnb", 8000),
]
AV_FILES = [case for case in AV_FILES if case[1] in av.codecs_available]  # PyAV 19 writes no AMR
"""Container, codec, rate: what PyAV's FFmpeg writes."""


@pytest.mark.parametrize(("container", "codec", "rate"), AV_FILES)
def test_nothing_is_lost_of_any_container_and_codec(container, codec, rate, caplog):
    """And nobody is warned of what an encoder puts before and after."""
    try:
        content = written_by_av(container, codec, rate)
    except av.FFmpegError:
        pytest.skip("this FFmpeg cannot write it")
    for audio in (content, {"path": "a row's own name", "audio": {"bytes": content, "path": None}}):
        seconds = len(decode_audio(audio)) / 16000
        assert 2.0 - 1e-3 <= seconds <= 2.0 + 0.05 + 2 * 2048 / rate
    assert not caplog.records


LOSSLESS = [case for case in AV_FILES if case[1].startswith(csc_hf.audio.EXACT_CODECS)]


@pytest.mark.parametrize(("container", "codec", "rate"), LOSSLESS)
def test_lossless_codecs_give_every_sample_or_tell(container, codec, rate, caplog, monkeypatch):
    """Also of a last packet that is shorter than others, which FFmpeg cuts once more in CAF."""
    for seconds in (2.0, 1.2345):
        content = written_by_av(container, codec, rate, seconds=seconds)
        assert len(decode_audio(content, rate)) == round(seconds * rate)
    assert not caplog.records
    frames = csc_hf.audio._frames
    monkeypatch.setattr("csc_hf.audio._frames", lambda *args: cut_short(frames(*args), 0.01))
    assert len(decode_audio(content, rate)) == round(seconds * rate) or "0.01" in caplog.text  # soundfile reads some


def cut_short(frames, seconds: float):
    """Frames of PyAV that lack the last seconds."""
    frames = list(frames)
    samples = [frame.to_ndarray() for frame in frames]
    channels, rate = frames[0].layout.nb_channels, frames[0].sample_rate
    values = np.concatenate(samples, axis=1)[:, : -round(seconds * rate) * channels]
    frame = av.AudioFrame.from_ndarray(values, format="flt", layout=frames[0].layout.name)
    frame.sample_rate = rate
    yield frame


@pytest.mark.parametrize(
    ("container", "codec"), [("matroska", "pcm_s16le"), ("flv", "libmp3lame"), ("ogg", "libopus")]
)
def test_of_a_file_that_is_cut_off_the_rest_is_told(container, codec, caplog):
    content = written_by_av(container, codec, 48000 if codec == "libopus" else 44100)
    try:
        seconds = len(decode_audio(content[: len(content) // 2])) / 16000
    except ValueError as error:
        assert "PyAV: " in str(error) or "soundfile: " in str(error)
    else:
        # The length of Ogg is that of its last page, whatever was after it.
        assert 0 < seconds < 1.5 and (codec == "libopus" or "s that its header says" in caplog.text)


def test_channels_of_containers_and_blocks(monkeypatch):
    content = written_by_av("mp4", "alac", channels=2)
    left, right, mean = decode_audio(content, channel=0), decode_audio(content, channel=1), decode_audio(content)
    np.testing.assert_allclose((left + right) / 2, mean, atol=1e-6)
    assert np.abs(left - right).max() > 0.1
    monkeypatch.setattr("csc_hf.audio.BLOCK_SAMPLES", 4096)
    blocks = list(read_blocks(OneChannel(content, 1)))
    assert len(blocks) > 5 and np.array_equal(np.concatenate(blocks), right)
    for audio, numbers in ((content, "0 to 1"), (tone(300), "0 is the only one")):
        with pytest.raises(ValueError, match=f"has no channel 2: .*{numbers}"):
            decode_audio(audio, channel=2)


def test_a_playlist_opens_no_other_file(tmp_path):
    (tmp_path / "secret.wav").write_bytes(encode(tone(300), format="WAV"))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\n{tmp_path}/secret.wav\n#EXT-X-ENDLIST\n"
    for content in (playlist, f"ffconcat version 1.0\nfile {tmp_path}/secret.wav\n"):
        (tmp_path / "list").write_text(content)
        for audio in (content.encode(), tmp_path / "list"):
            with pytest.raises(ValueError, match="PyAV"):
                decode_audio(audio)


@pytest.mark.parametrize("delay", [0, 8])
def test_channels_that_cancel_are_told(delay, caplog):
    """Inverse ones as of a balanced line, and a delay that takes most of a voice away."""
    left = tone(1000)
    right = -left if delay == 0 else np.roll(left, delay)
    stereo = encode(np.stack([left, right], axis=1), format="WAV", subtype="FLOAT")
    np.testing.assert_allclose(decode_audio(stereo), left, atol=1e-6)
    assert "channel 0, the loudest, is heard instead" in caplog.text
    caplog.clear()
    list(read_blocks(stereo, quiet=True))
    for fine in (
        np.stack([left, 0 * left]),
        np.stack([left, tone(700)]),
        np.random.default_rng(0).normal(0, 1, (2, 999)),
    ):
        np.testing.assert_allclose(decode_audio(fine), fine.mean(axis=0), atol=1e-6)
    assert not caplog.records


@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_constant_is_a_constant_at_any_rate(rate):
    np.testing.assert_array_equal(
        decode_audio({"array": np.full(rate, 0.25), "sampling_rate": rate}), np.float32(0.25)
    )


def decoder(seconds: float, promised: float, codec: str = "mp3"):
    """A torchcodec decoder whose header promises more."""
    samples = types.SimpleNamespace(data=torch.zeros(1, round(16000 * seconds)), sample_rate=16000)
    metadata = types.SimpleNamespace(
        sample_rate=16000, num_channels=1, duration_seconds_from_header=promised, codec=codec
    )
    return types.SimpleNamespace(metadata=metadata, get_all_samples=lambda: samples)


def test_what_torchcodec_loses_is_told(caplog):
    with pytest.raises(ValueError, match=r"gives 0.50 of the 4.00 s .*Audio\(decode=False\)"):
        decode_audio(decoder(0.5, 4.0))  # as it does with ADPCM
    decode_audio(decoder(3.9, 4.0))
    assert not caplog.records
    decode_audio(decoder(3.74, 4.0))  # as of ALAC in CAF
    assert "ends after 3.74 of the 4.00 s that its header says: 0.260 s are lost" in caplog.text


@pytest.mark.parametrize("codec", ["alac", "flac", "pcm_s16le", "aac"])
def test_what_may_be_missing_depends_on_the_codec(codec, caplog):
    """A codec with a delay counts it in the header, another does not."""
    decode_audio(decoder(3.957, 4.0, codec))
    assert ("ends after 3.96 of the 4.00 s that its header says: 0.043 s are lost" in caplog.text) == (codec != "aac")


@pytest.mark.parametrize(
    ("form", "name"),
    [("WAV", "WAV"), ("FLAC", "FLAC"), ("OGG", "OGG"), ("MP3", "MP3 or AAC"), ("AIFF", "AIFF"), ("AU", "AU"),
     ("RF64", "WAV"), ("W64", "WAV"), ("PCM", None)],
)  # fmt: skip
def test_formats_are_known_by_their_first_bytes(form, name):
    pcm = np.random.default_rng(0).integers(-(2**15), 2**15, 16000).astype("<i2")
    pcm[0] = -1025  # as a frame of MP3 begins
    content = pcm.tobytes() if form == "PCM" else encode(np.clip(NOISE, -1, 1), format=form)
    assert encoded_format(content[:2048]) in (name, "MP3" if form == "MP3" else name)
    if name is not None:
        blocks = list(read_live(io.BytesIO(content[2048:]), content[:2048]))
        assert len(blocks) > 2 and abs(sum(map(len, blocks)) - 16001) < 1200


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
