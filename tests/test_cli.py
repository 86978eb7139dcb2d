# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""The command csc-hf: in this process where that is enough, and as a user's shell starts it."""

import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import pickle
import re
import runpy
import signal
import subprocess
import sys
import tomllib
import types
from logging import getLogger
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file, save_file
from speech import encode, make_rows, write
from test_pipelines import calibrated
from transformers import Wav2Vec2Config, pipeline
from transformers.utils import logging
from typer.testing import CliRunner

from csc_hf import (
    CSCConfig,
    CSCFeatureExtractor,
    CSCForPreTraining,
    CSCForSpeechSeparation,
    CSCModel,
    __version__,
    cli,
)
from csc_hf.cli import models
from csc_hf.cli import recordings as inputs
from csc_hf.cli import store as stores
from csc_hf.cli.diarization import check_rttm
from csc_hf.cli.live import Turns
from csc_hf.cli.options import Kind, Part
from csc_hf.cli.output import Table, check_stdout
from csc_hf.cli.progress import Progress, for_each
from csc_hf.diarization import DiarizationSettings, Turn, diarize
from csc_hf.enrolment import Enrolment
from csc_hf.long_audio import embed as embed_audio
from csc_hf.long_audio import separate as separate_audio
from csc_hf.streaming import LiveDiarizer, join_turns

ROOT = Path(__file__).resolve().parents[1]
AUDIO = ROOT / "examples" / "audio"
ANNA, BEN, MEETING = (str(AUDIO / f"{name}.flac") for name in ("anna", "ben", "meeting"))
COMMANDS = "embed verify enrol identify diarize live separate extract evaluate export card".split()
RATE = 16000
posix = pytest.mark.skipif(sys.platform == "win32", reason="pipes, signals and names of POSIX systems")


@pytest.fixture(autouse=True)
def logging_as_it_was():
    """The command keeps Transformers quiet, which would last for the tests of other files."""
    verbosity = logging.get_verbosity()
    yield
    package = getLogger("csc_hf")
    for handler in package.handlers[:]:
        package.removeHandler(handler)
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A saved pre-training checkpoint without calibration."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = CSCConfig.tiny(front_end="stft", initializer_range=0.3, frame_activity=True)
    DiarizationSettings(chunk_seconds=1.0, overlap_seconds=0.5, onset=0.3, offset=0.2, threshold=0.1).store(config)
    CSCForPreTraining(config).save_pretrained(folder)
    CSCFeatureExtractor(min_samples=config.segment_samples).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def audio(tmp_path):
    """Recordings of noise, and what is no recording."""
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * rng.standard_normal(RATE // 2), RATE, "FLOAT")
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE // 2), RATE)
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan), RATE, "FLOAT")
    (tmp_path / "broken.wav").write_text("not audio")
    (tmp_path / "empty").mkdir()
    return tmp_path


def run(*arguments, status: int = 0, stdin: bytes | None = None):
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], input=stdin, prog_name="csc-hf")
    assert result.exit_code == status, (result.stdout, result.stderr)
    return result


def objects(result) -> list[dict]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def error_of(result) -> str:
    """The message of a command that failed: one line on standard error, after what it has warned of."""
    lines = result.stderr.splitlines(keepends=True)
    (error,) = [line for line in lines if not line.startswith("csc-hf: warning: ")]
    assert error.startswith("csc-hf: ") and lines[-1] == error, result.stderr
    return error


# --- as the shell starts it ------------------------------------------------------------------------------------------


def command(*arguments) -> list[str]:
    """What the script that pip installs does."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, function = project["scripts"]["csc-hf"].split(":")
    code = f"import sys; from {module} import {function}; sys.argv[0] = 'csc-hf'; sys.exit({function}())"
    return [sys.executable, "-c", code, *map(str, arguments)]


def cpu_seconds(words: list[str]) -> float:
    import resource  # not on Windows

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, check=True, capture_output=True, timeout=300)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@posix
def test_help_starts_fast():
    assert cpu_seconds(command("--help")) < 1.5 * cpu_seconds([sys.executable, "-c", "import torch"])
    check = "import atexit, sys; atexit.register(lambda: print(sorted({'torch', 'transformers'} & set(sys.modules))));"
    words = command("verify", "--help")
    words[2] = check + words[2]
    printed = subprocess.run(words, check=True, capture_output=True, text=True, timeout=300).stdout
    assert "csc-hf verify" in printed and printed.splitlines()[-1] == "[]"


@posix
def test_nobody_reads_the_output(model, audio, fresh_python):
    _, _, *program = command("embed", audio / "a.wav", audio / "b.wav", "--json", "--model", model)
    reader, writer = os.pipe()
    os.close(reader)
    process = fresh_python(*program, stdout=writer)
    os.close(writer)
    assert process.stderr == "" and process.returncode == 141


@posix
def test_interrupt():
    def heed_signals():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it

    process = subprocess.Popen(
        command("embed", "-"), stdin=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heed_signals
    )
    with process:
        process.stdin.write(bytes(1_000_000))  # more than a pipe holds: once it is written, the command reads
        process.stdin.flush()
        process.send_signal(signal.SIGINT)
        process.stdin.close()  # Python looks for signals between reads, and this ends one that has just begun
        assert process.wait(60) == 130 and process.stderr.read() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk():
    with open("/dev/full", "w") as full:
        process = subprocess.run(command("--help"), stdout=full, stderr=subprocess.PIPE, text=True, timeout=300)
    assert process.returncode == 2 and process.stderr == "csc-hf: No space left on device\n"


def test_without_typer(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.setitem(sys.modules, "csc_hf.cli", cli)  # put back in the end
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(ROOT / "csc_hf_cli.py"), run_name="__main__")
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "csc-hf: typer is not installed: pip install 'csc-hf[cli]'\n"


# --- help and errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(name):
    shown = run(name, "--help").stdout
    assert f"csc-hf {name} " in shown.split("sage:")[1].split("\n", 2)[2] and "--json" in shown


def test_help_and_version():
    shown = run("--help").stdout
    assert all(f" {name} " in shown for name in COMMANDS)
    assert run("--version").stdout == f"csc-hf {__version__}\n"
    result = run()
    assert result.stdout == shown and result.stderr == ""


ERRORS = {
    "no file": ("embed no.wav", "no file, folder or match of 'no.wav'"),
    "no match": ("identify x*.wav --store a.wav", "match of 'x*.wav'"),
    "no audio in a folder": ("embed empty", "the folder 'empty' holds no audio files"),
    "stdin twice": ("verify - -", "given twice"),
    "two tests": ("verify a.wav ?.wav", "B, '?.wav', holds 3 recordings"),
    "two mixtures": ("extract ?.wav --enrol a.wav --out x.wav", "MIX, '?.wav', holds 3 recordings"),
    "not audio": ("verify a.wav broken.wav", "cannot decode 'broken.wav'"),
    "not audio, enrolled": (
        "extract a.wav --enrol broken.wav --out x.wav --threshold 0",
        "cannot decode 'broken.wav'",
    ),
    "NaN": ("separate nan.wav --out out", "'nan.wav' holds NaN"),
    "option": ("embed a.wav --no-such-option", "--no-such-option"),
    "argument": ("verify a.wav", "Missing argument 'B'"),
    "command": ("diarise a.wav", "No such command 'diarise'"),
    "no store": ("identify a.wav --store no.safetensors", "no store 'no.safetensors'"),
    "no such store": ("identify a.wav --store a.wav", "'a.wav' is no store of voices"),
    "folder of a store": ("enrol Anna a.wav --store no/v.safetensors", "no folder 'no'"),
    "silent": ("enrol Anna a.wav silent.wav --store v.safetensors", "'Anna' is silent, 'silent.wav'"),
    "format": ("extract a.wav --enrol b.wav --out x.txt", "cannot write audio to 'x.txt'"),
    "no format": ("extract a.wav --enrol b.wav --out x", "cannot write audio to 'x'"),
    "folder of a file": ("extract a.wav --enrol b.wav --out no/x.wav", "no folder 'no'"),
    "over the input": ("extract a.wav --enrol b.wav --out b.wav", "'b.wav' would be written over the recording"),
    "JSON in the audio": ("extract a.wav --enrol b.wav --out - --json", "--json and --out -"),
    "JSON in the embeddings": ("embed a.wav --out - --json", "--json and --out -"),
    "one stem": ("separate a.wav empty/../a.flac --out out", "'a.wav' and "),
    "outputs": ("diarize a.wav --rttm - --json", "--rttm - and --json would all write to standard output"),
    "labels": ("diarize a.wav b.wav --audacity x.txt", "--audacity is for one recording, and there are 2"),
    "RTTM over the input": ("diarize a.wav --rttm a.wav", "'a.wav' would be written over the recording"),
    "no store of names": ("diarize a.wav --store no.safetensors", "no store 'no.safetensors'"),
    "no frame activity": ("diarize a.wav --model no_frames", "csc-hf: this model does not say who is active"),
    "a file that is live": ("live a.wav", "'a.wav' is not -"),
    "evaluation": ("evaluate mfcc", "give --data or --trials"),
    "conditions": ("evaluate mfcc --data a --conditions loud", "--conditions loud: choose some of clean"),
    "no data": ("evaluate mfcc --data no/*.parquet", "no/*.parquet: no such files or folder"),
    "a folder of no data": ("evaluate mfcc --data empty", "empty: no such files or folder, and no such data set"),
    "no speakers": (
        "evaluate mfcc --data speech/*.parquet --speaker_column_name who --id_column_name none",
        "speech/*.parquet: speaker_column='who': the data has no such column",
    ),
    "no labels": (
        "evaluate mfcc --data speech/*.parquet --id_column_name none",
        "got 0 of 0 speakers: give more speech or fewer seconds; 3 recordings left out, such as",
    ),
    "no samples": (
        "extract none.wav --enrol a.wav --out x.wav --threshold 0",
        "'none.wav' holds no samp",
    ),
    "no card": ("card", "has no card"),
    "no results": ("card --results broken.wav", "'broken.wav' is no results.json"),
    "no model": ("embed a.wav --model ./no", "no folder './no' of a model"),
    "empty folder": ("embed a.wav --model empty", "cannot load a model from 'empty'"),
    "another model": ("embed a.wav --model other", "'other' is no CSC model but of type 'wav2vec2'"),
}


@pytest.mark.parametrize("line, message", ERRORS.values(), ids=ERRORS)
def test_an_error_is_one_line(line, message, model, audio, monkeypatch):
    monkeypatch.chdir(audio)
    monkeypatch.setenv("CSC_HF_MODEL", model)
    Path("a.flac").write_bytes(encode(np.ones(100)))
    soundfile.write("none.wav", np.zeros(0), RATE)
    write(Path("speech"), [row | {"speaker_id": None} for row in make_rows(3)])
    Wav2Vec2Config().save_pretrained("other")
    CSCModel(CSCConfig.tiny()).save_pretrained("no_frames")
    before = sorted(audio.rglob("*"))
    result = run(*line.split(" "), status=2)
    assert message in error_of(result) and result.stdout.count("\n") <= 1  # the head of a table
    assert sorted(audio.rglob("*")) in (before, sorted([*before, audio / "out"]))  # nothing half done is left


def store_of(path, model: str, *names: str, kind: str = "mean"):
    """A store of one voice by several names, which may be such as no speaker can have today."""
    network = CSCForPreTraining.from_pretrained(model)
    store = stores.VoiceStore(model, stores.fingerprint(network, kind), kind, RATE)
    for name in names:
        embedding = np.eye(1, network.config.speaker_embedding_size, dtype=np.float32)[0]
        store.voices[name], store.recordings[name] = Enrolment(embedding, None, silent=False), 1
    store.save(path)
    return path


WRONG_VALUES = {
    "no name": ("enrol  a.wav --store v", "'' is no name: give the speaker one"),
    "name of a path": ("enrol a/b a.wav --store v", "a speaker cannot be called 'a/b'"),
    "store": ("enrol Anna a.wav --store b", "'b' is a folder: choose the name of a file"),
    "kind": (
        "enrol Anna a.wav --store v --enrolment scorer",
        "--enrolment scorer needs a checkpoint of CSCForSpeaker",
    ),
    "scorer": ("verify a.wav b.wav --enrolment scorer", "--enrolment scorer needs a checkpoint of CSCForSpeaker"),
    "condition": (
        "verify a.wav b.wav --condition no",
        "--condition no: the model has no such calibration for the enr",
    ),
    "condition of a store": (
        "identify a.wav --store two --condition no",
        "--condition no: the model has no such cali",
    ),
    "condition of an extraction": ("extract a.wav -e b.wav -o x.wav --condition no", "--condition no: the model has"),
    "threshold": ("verify a.wav b.wav --threshold nan", "nan is no finite number"),
    "threshold and condition": ("verify a.wav b.wav --threshold 1 --condition x", "--threshold and --condition: give"),
    "no speakers": ("diarize a.wav --num-speakers 0", "'--num-speakers' / '-n': 0: give a whole number from 1 on"),
    "speakers": ("diarize a.wav -n 2 --max-speakers 3", "--num-speakers 2 is exact: leave out"),
    "bounds": ("diarize a.wav --min-speakers 3 --max-speakers 2", "--min-speakers 3 is above --max-speakers 2"),
    "folders in RTTM": ("diarize a.wav b/a.wav --rttm -", "'a.wav' and 'b/a.wav' would both be 'a' in RTTM"),
    "spaces in RTTM": ("diarize b --rttm x", "'b/x y.wav' and 'b/x_y.flac' would both be 'x_y' in RTTM"),
    "people in RTTM": ("diarize a.wav --store two --rttm -", "'Anna B' and 'Anna_B' are both 'Anna_B' in RTTM"),
    "voices of one name": ("diarize b/x_y.wav b/x_y.flac --voices v", "would be written to the same files"),
    "nobody": ("live - --max-speakers 0", "'--max-speakers': 0: give a whole number from 1 on"),
    "fewer than enrolled": (
        "live - --latency 1 --store two --max-speakers 1",
        "--max-speakers 1: the store holds 2 voices",
    ),
    "latency": ("live - --latency 9", "--latency 9: give 0.064 to 1 seconds with this model"),
    "no latency": ("live - --latency nan", "nan is no finite number"),
    "part": ("export --out v --part no", "'no' is not one of 'embedding'"),
}


@pytest.fixture(scope="module")
def wrong(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "b").mkdir()
    for name in ("a.wav", "b.wav", "b/a.wav", "b/x y.wav", "b/x_y.wav", "b/x_y.flac"):
        (folder / name).write_bytes(b"")
    store_of(folder / "two", model, "Anna B", "Anna_B")
    return folder


@pytest.mark.parametrize("line, message", WRONG_VALUES.values(), ids=WRONG_VALUES)
def test_a_wrong_value_is_told_before_the_model_is_loaded(line, message, model, wrong, monkeypatch):
    """By its option, not by an argument of Python."""

    def never(*_, **__):
        raise AssertionError("a model is loaded")

    monkeypatch.chdir(wrong)
    monkeypatch.setenv("CSC_HF_MODEL", model)
    monkeypatch.setattr(CSCModel, "from_pretrained", never)
    monkeypatch.setattr(CSCForPreTraining, "from_pretrained", never)
    before = sorted(wrong.rglob("*"))
    assert message in error_of(run(*line.split(" "), status=2))
    assert sorted(wrong.rglob("*")) == before


def test_flags_have_no_type_in_the_help():
    for name in COMMANDS:
        options = [line for line in run(name, "--help").stdout.splitlines() if "--help" not in line]
        assert not [line for line in options if "<bool>" in line]


def test_parts_of_an_export():
    from csc_hf.export import PARTS

    assert list(Part) == list(PARTS)


@pytest.mark.parametrize(
    "error, status, printed",
    [
        (KeyboardInterrupt(), 130, ""),
        (KeyError("x"), 2, "csc-hf: KeyError: 'x'\n"),
        (ValueError("first\nsecond"), 2, "csc-hf: first\n"),
        (PermissionError(13, "Permission denied", "a.wav"), 2, "csc-hf: 'a.wav': Permission denied\n"),
        (ModuleNotFoundError("", name="soxr"), 2, "csc-hf: soxr is not installed: pip install 'csc-hf[audio]'\n"),
        (
            ModuleNotFoundError("", name="datasets"),
            2,
            "csc-hf: datasets is not installed: pip install 'csc-hf[eval]'\n",
        ),
    ],
)
def test_no_traceback_whatever_happens(error, status, printed, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(inputs, "find", fail)
    assert run("embed", "a.wav", status=status).stderr == printed


# --- the model -------------------------------------------------------------------------------------------------------


def test_default_model(model, tmp_path, monkeypatch):
    monkeypatch.delenv("CSC_HF_MODEL", raising=False)
    assert models.default_model() == str(ROOT / "model_cards" / "csc-small")
    monkeypatch.setattr(models, "__file__", str(tmp_path / "a" / "b" / "c" / "models.py"))  # installed, not in a clone
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no model: csc-small is neither in a clone .* set CSC_HF_MODEL"):
        models.default_model()
    (tmp_path / "hub" / "models--someone--csc-small").mkdir(parents=True)
    assert models.default_model() == "someone/csc-small"
    (tmp_path / "hub" / "models--other--csc-small").mkdir()
    with pytest.raises(ValueError, match="the cache holds other/csc-small, someone/csc-small: choose one"):
        models.default_model()
    monkeypatch.chdir(ROOT)
    assert models.default_model() == str(ROOT / "model_cards" / "csc-small")
    monkeypatch.setenv("CSC_HF_MODEL", model)
    assert models.default_model() == model


# --- recordings ------------------------------------------------------------------------------------------------------


@posix
@pytest.mark.release
def test_a_hub_that_does_not_answer(tmp_path):
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        command("embed", ANNA, "--model", "someone/mine"), env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(r"csc-hf: cannot load a model from 'someone/mine': .*connect.*\n", done.stderr)


def test_files_folders_patterns_and_letters(audio, monkeypatch):
    monkeypatch.chdir(audio)
    Path("deep/[1] x").mkdir(parents=True)
    for path in ("deep/[1] x/e*.FLAC", "deep/d.opus", "deep/notes.txt"):
        Path(path).write_bytes(b"")

    def names(*arguments):
        return [recording.name for recording in inputs.find(arguments, audio)]

    assert names("b.wav", "a.wav", "./b.wav") == ["b.wav", "a.wav"]
    assert names("deep") == ["deep/[1] x/e*.FLAC", "deep/d.opus"]
    assert names("deep/[1] x", "deep/[1] x/e*.FLAC") == ["deep/[1] x/e*.FLAC"]
    assert names("[ac].wav", "**/*.opus") == ["a.wav", "c.wav", "deep/d.opus"]
    assert names("deep/notes.txt") == ["deep/notes.txt"]  # what is named itself is tried
    for path in ("._a.wav", "deep/._d.opus", "deep/.trash/x.wav", "deep/__MACOSX/d.opus", "deep/__MACOSX/._d.opus"):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_bytes(b"")
    assert names("deep") == ["deep/[1] x/e*.FLAC", "deep/d.opus"]
    assert names("**/*.opus", "*a.wav") == ["deep/d.opus", "a.wav"]
    assert names("deep/__MACOSX", "._a.wav") == ["deep/__MACOSX/d.opus", "._a.wav"]


def test_names_of_what_is_made_of_recordings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def made(*names):
        found = [inputs.Recording(Path(name), name) for name in names]
        return [path.as_posix() for path in inputs.output_names(found).values()]

    assert made("x/a.wav", "y/b.wav") == ["a", "b"]
    assert made("x/1/a.wav", "x/2/a.flac", "b.wav") == ["1/a", "2/a", "b"]
    assert made("a.wav", "x/a.wav", str(tmp_path / "x" / "b.wav")) == ["a", "x/a", "b"]
    with pytest.raises(ValueError, match="'a.wav' and 'x/../a.flac' would be written to the same files"):
        (tmp_path / "x").mkdir()
        made("a.wav", "x/../a.flac")


def test_a_recording_that_rttm_cannot_name_is_told_before_the_work():
    check_rttm([inputs.Recording(Path("a.wav"), "a.wav")])
    with pytest.raises(ValueError, match="without the quotation mark"):
        check_rttm([inputs.Recording(Path("q.wav"), '"q.wav')])


def test_recordings_of_one_name_in_two_folders(model, audio):
    """The names of people or days are often those of folders."""
    for day in ("monday", "tuesday"):
        (audio / day).mkdir()
        (audio / "a.wav").rename(audio / day / "1.wav") if day == "monday" else (audio / "b.wav").rename(
            audio / day / "1.wav"
        )
    days = audio / "monday", audio / "tuesday"
    told = objects(run("diarize", *days, "--json", "--voices", audio / "v", "--model", model))
    assert [one["file"] for one in told] == [str(day / "1.wav") for day in days]
    for day, one in zip(days, told, strict=True):
        assert {path.stem for path in (audio / "v" / day.name / "1").iterdir()} == one["embeddings"].keys() != set()
    told = objects(run("separate", *days, "--out", audio / "out", "--json", "--model", model))
    assert [one["files"][0] for one in told] == [str(audio / "out" / day.name / "1-1.wav") for day in days]
    assert all(Path(file).is_file() for one in told for file in one["files"])


@posix
def test_a_named_pipe(audio):
    pipe = audio / "pipe"
    os.mkfifo(pipe)
    process = subprocess.Popen(["sh", "-c", 'exec cat "$0" > "$1"', str(audio / "a.wav"), str(pipe)])
    try:
        (found,) = inputs.find([str(pipe)], audio)
    finally:
        process.kill()
        process.wait()
    assert found.path.read_bytes() == (audio / "a.wav").read_bytes() and found.name == str(pipe)


def test_stdin_that_holds_nothing():
    assert "standard input holds no more audio" in error_of(run("embed", "-", status=2, stdin=b""))
    result = run("verify", ANNA, "-", status=2, stdin=b"not audio")
    assert "cannot decode 'standard input'" in error_of(result)


# --- embed -----------------------------------------------------------------------------------------------------------


def test_embed(model, audio):
    encoder = CSCModel.from_pretrained(model).eval()
    expected = {name: embed_audio(encoder, audio / f"{name}.wav") for name in "ab"}
    paths = [audio / "a.wav", audio / "broken.wav", audio / "b.wav"]
    result = run("embed", *paths, "--json", "--model", model, status=2)
    assert "broken.wav" in error_of(result)
    for found, path in zip(objects(result), (paths[0], paths[2]), strict=True):
        assert found["file"] == str(path)
        np.testing.assert_allclose(found["embeddings"], expected[path.stem].embeddings, atol=1e-6)
        np.testing.assert_allclose(found["activity"], expected[path.stem].activity, atol=1e-6)

    target = audio / "out.safetensors"
    assert run("embed", *paths, "--out", target, "--model", model, status=2).stdout == ""
    tensors = load_file(target)
    np.testing.assert_allclose(tensors["embeddings"], [expected[name].embeddings for name in "ab"], atol=1e-6)
    assert tensors["activity"].shape == (2, 2)
    with safe_open(target, "pt") as file:
        assert json.loads(file.metadata()["files"]) == [str(paths[0]), str(paths[2])]

    piped = run("embed", "-", "--out", "-", "--model", model, stdin=paths[0].read_bytes())
    np.testing.assert_allclose(load(piped.stdout_bytes)["embeddings"][0], expected["a"].embeddings, atol=1e-6)
    rows = run("embed", paths[0], "--model", model).stdout.splitlines()
    assert rows[0] == "file\tslot 1\tslot 2" and rows[1].split("\t")[1] == f"{expected['a'].activity[0]:.2f}"


# --- verify ----------------------------------------------------------------------------------------------------------


def test_verify(audio, monkeypatch):
    monkeypatch.delenv("CSC_HF_MODEL", raising=False)
    same = run("verify", ANNA, MEETING, status=0)
    assert (
        same.stdout.startswith("probably the same person: score 0.77, llr 6.3 (probability 1.00 at even odds), ")
        and "threshold 0.37, condition mix0" in same.stdout
        and not same.stderr
    )
    (different,) = objects(run("verify", ANNA, BEN, "--json", status=1))
    assert {"score", "llr", "decision"} <= different.keys() and different["decision"] is False
    assert different["llr"] < 0 and round(different["score"], 2) == 0.25
    (piped,) = objects(run("verify", ANNA, "-", "--json", stdin=Path(MEETING).read_bytes()))
    assert piped["decision"] is True
    attention = run("verify", ANNA, MEETING, "--enrolment", "attention", "--json")
    assert objects(attention)[0]["score"] != piped["score"]
    assert objects(run("verify", ANNA, BEN, "--threshold", "0.1", "--json"))[0]["decision"] is True
    silent = run("verify", ANNA, audio / "silent.wav", status=3)
    assert silent.stdout.startswith("undecided: ") and "a recording is silent" in silent.stdout


def test_verify_without_calibration(model, audio):
    result = run("verify", audio / "a.wav", audio / "b.wav", "--json", "--model", model, status=3)
    (undecided,) = objects(result)
    assert undecided["decision"] is None and undecided["llr"] is None and -1 <= undecided["score"] <= 1
    several = run("verify", audio / "[ab].wav", audio / "c.wav", "--threshold", "-1", "--json", "--model", model)
    verify = pipeline("speaker-verification", model=model, threshold=-1.0)
    expected = verify([str(audio / "a.wav"), str(audio / "b.wav")], str(audio / "c.wav"))["score"]
    assert objects(several)[0]["score"] == pytest.approx(expected, abs=1e-6)


def test_a_warning_is_one_line(model, audio):
    """Nobody takes what newly initialised weights say for a score."""
    network = CSCModel.from_pretrained(model)
    network.save_pretrained(audio / "encoder")
    result = run("separate", audio / "a.wav", "--out", audio / "out", "--model", audio / "encoder")
    warnings = result.stderr.splitlines()
    assert warnings and all(line.startswith("csc-hf: warning: ") for line in warnings)
    assert "WHAT THE PIPELINE RETURNS MEANS NOTHING" in result.stderr


def test_kinds_of_enrolment():
    from csc_hf.evaluation.calibration import ENROLMENTS

    assert tuple(Kind) == ENROLMENTS


# --- enrol and identify ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mean", "attention"])
def test_enrol_and_identify(kind, model, audio, tmp_path):
    folder = tmp_path / "calibrated"
    network = calibrated(CSCForPreTraining.from_pretrained(model), enrolment=kind)
    network.save_pretrained(folder)
    store = tmp_path / "voices.safetensors"
    options = ["--store", store, "--model", folder]
    run("enrol", "Zoë: [1]", audio / "a.wav", audio / "b.wav", *options, "--enrolment", kind)
    (told,) = objects(run("enrol", "Ben", audio / "c.wav", *options, "--json"))
    assert told == {"name": "Ben", "recordings": 1, "store": str(store), "voices": ["Zoë: [1]", "Ben"]}
    with safe_open(store, "pt") as file:
        metadata = file.metadata()
    assert metadata["enrolment"] == kind and metadata["sampling_rate"] == "16000" and metadata["version"] == "1"
    kept = json.loads(metadata["voices"])
    assert [(of["name"], of["recordings"]) for of in kept] == [("Zoë: [1]", 2), ("Ben", 1)]
    assert all(isinstance(of["several_speakers"], bool) for of in kept)

    verify = pipeline("speaker-verification", model=str(folder), enrolment=kind)
    verify.enrol("Zoë: [1]", [str(audio / "a.wav"), str(audio / "b.wav")])
    verify.enrol("Ben", str(audio / "c.wav"))
    (found,) = objects(run("identify", audio / "c.wav", *options, "--json"))
    assert found["file"] == str(audio / "c.wav")
    for voice, expected in zip(found["voices"], verify(str(audio / "c.wav")), strict=True):
        assert voice.keys() == expected.keys() and voice["speaker"] == expected["speaker"]
        assert voice["score"] == pytest.approx(expected["score"], abs=1e-6)
    result = run("identify", audio / "broken.wav", audio / "c.wav", *options, status=2)
    rows = [row.split("\t") for row in result.stdout.splitlines()]
    assert rows[0] == ["file", "voice", "score", "llr", "speaks"] and len(rows) == 3
    assert rows[1][1] == found["voices"][0]["speaker"] and rows[1][4] in ("yes", "no")

    taken = run("enrol", "Ben", audio / "a.wav", *options, status=2)
    assert "'Ben' is in" in error_of(taken) and "--replace" in taken.stderr
    run("enrol", "Ben", audio / "a.wav", *options, "--replace")
    other = "mean" if kind == "attention" else "attention"
    mismatch = run("enrol", "Carl", audio / "a.wav", *options, "--enrolment", other, status=2)
    assert f"holds voices of --enrolment {kind}, not {other}" in error_of(mismatch)
    assert list(stores.VoiceStore.load(store).voices) == ["Zoë: [1]", "Ben"]


def test_a_store_belongs_to_its_model(model, audio, tmp_path):
    store = tmp_path / "voices.safetensors"
    run("enrol", "Anna", audio / "a.wav", "--store", store, "--model", model)
    for name, network in (
        ("trained", CSCForPreTraining.from_pretrained(model)),
        ("head", CSCForSpeechSeparation.from_pretrained(model)),
        ("encoder", CSCModel.from_pretrained(model)),
    ):
        calibrated(network).save_pretrained(tmp_path / name)  # a calibration does not make it another model
        run("identify", audio / "a.wav", "--store", store, "--model", tmp_path / name)
    with torch.no_grad():
        network.slots.bias[0] += 1e-3
    network.save_pretrained(tmp_path / "encoder")
    before = store.read_bytes()
    for command_ in (["identify", audio / "a.wav"], ["enrol", "Ben", audio / "b.wav"]):
        result = run(*command_, "--store", store, "--model", tmp_path / "encoder", status=2)
        assert repr(model) in error_of(result) and repr(str(tmp_path / "encoder")) in result.stderr
    assert store.read_bytes() == before


def test_a_store_is_complete_or_as_it_was(model, audio, tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    store = tmp_path / "voices.safetensors"
    store.symlink_to(tmp_path / "real" / "voices.safetensors")
    run("enrol", "Anna", audio / "a.wav", "--store", store, "--model", model)
    assert store.is_symlink() and [path.name for path in (tmp_path / "real").iterdir()] == ["voices.safetensors"]
    before = store.read_bytes()

    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    result = run("enrol", "Ben", audio / "b.wav", "--store", store, "--model", model, status=2)
    assert error_of(result) == "csc-hf: No space left on device\n"
    assert store.read_bytes() == before and len(list((tmp_path / "real").iterdir())) == 1


def test_what_is_no_store_is_refused(tmp_path):
    path = tmp_path / "voices.safetensors"
    path.write_bytes(pickle.dumps({"Anna": [1.0]}))
    with pytest.raises(ValueError, match="is no store of voices, or is damaged"):
        stores.VoiceStore.load(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="is no store of voices: give one that `csc-hf enrol` has written"):
        stores.VoiceStore.load(path)
    save_file({"x": torch.zeros(1)}, path, {"format": stores.FORMAT, "version": "2"})
    with pytest.raises(ValueError, match="is a store of version 2, and this csc_hf knows version 1"):
        stores.VoiceStore.load(path)
    save_file({"x": torch.zeros(1)}, path, {"format": stores.FORMAT, "version": "1"})
    with pytest.raises(ValueError, match="or is damaged: 'model'"):
        stores.VoiceStore.load(path)


# --- separate and extract --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.1, 4.0])
def test_separate(level, model, tmp_path, monkeypatch):
    from csc_hf.cli import files

    monkeypatch.setattr(files, "BLOCK_SAMPLES", 1000)
    rng = np.random.default_rng(1)
    samples = (level * rng.uniform(-1, 1, RATE)).astype(np.float32)
    mixture, out = tmp_path / "mix.wav", tmp_path / "new" / "out"
    soundfile.write(mixture, samples, RATE, "FLOAT")
    (told,) = objects(run("separate", mixture, "--out", out, "--json", "--model", model))
    expected = separate_audio(CSCForSpeechSeparation.from_pretrained(model).eval(), samples).sources
    gain = min(1, 1 / np.abs(expected).max())
    assert told["gain"] == pytest.approx(gain, rel=1e-4) and (told["gain"] < 1) == (level > 1)
    assert told["files"] == [str(out / "mix-1.wav"), str(out / "mix-2.wav")] and len(told["activity"]) == 2
    assert sorted(map(str, out.iterdir())) == told["files"]
    for path, source in zip(told["files"], expected, strict=True):
        written, rate = soundfile.read(path, dtype="float32")
        assert rate == RATE and np.abs(written).max() <= 1
        np.testing.assert_allclose(written, gain * source, atol=1e-4)
    rows = run("separate", mixture, "--out", out, "--model", model).stdout.splitlines()
    assert rows[0] == "file\tslot\tactivity\tspeaks" and rows[1].startswith(f"{out}/mix-1.wav\t1\t")
    over = tmp_path / "mix-1.wav"
    over.write_bytes(mixture.read_bytes())
    result = run("separate", mixture, over, "--out", tmp_path, "--model", model, status=2)
    assert "would be written over the recording itself" in error_of(result)


def test_extract(tmp_path, audio, monkeypatch):
    monkeypatch.delenv("CSC_HF_MODEL", raising=False)
    extract = pipeline("target-speaker-extraction", model=str(ROOT / "model_cards" / "csc-small"), enrolment=[ANNA])
    expected = extract(MEETING)
    target = tmp_path / "out" / "anna.flac"
    target.parent.mkdir()
    (told,) = objects(run("extract", MEETING, "--enrol", ANNA, "--out", target, "--json"))
    assert told["score"] == pytest.approx(expected["score"], abs=1e-4) and told["out"] == str(target)
    assert told["present"] is True and round(told["threshold"], 2) == 0.48  # above the 0.37 of `verify`
    np.testing.assert_allclose(soundfile.read(target)[0], told["gain"] * expected["source"], atol=1e-3)
    assert [path.name for path in target.parent.iterdir()] == ["anna.flac"]
    piped = run("extract", "-", "-e", ANNA, "-o", "-", stdin=Path(MEETING).read_bytes())
    written, rate = soundfile.read(io.BytesIO(piped.stdout_bytes))
    assert rate == RATE
    np.testing.assert_allclose(written, told["gain"] * expected["source"], atol=1e-4)


def test_extract_a_voice_that_is_not_there(tmp_path, audio, model):
    out = tmp_path / "x.wav"
    options = ["--enrol", audio / "b.wav", "--out", out, "--model", model, "--threshold", "1"]
    result = run("extract", audio / "a.wav", *options, status=1)
    assert f"{out}: not in the recording, the file is silent: score " in result.stdout
    assert not soundfile.read(out)[0].any() and len(soundfile.read(out)[0]) == RATE // 2
    silent = run("extract", audio / "silent.wav", *options, status=1)
    assert "a silent recording, threshold 1.00" in silent.stdout


# --- diarize and live ------------------------------------------------------------------------------------------------


@pytest.fixture
def meeting(tmp_path) -> Path:
    """Two seconds of noise of changing colour."""
    rng = np.random.default_rng(2)
    noise = rng.standard_normal(2 * RATE)
    noise[RATE:] = np.convolve(noise[RATE:], np.ones(40) / 4, "same")
    soundfile.write(tmp_path / "the meeting.wav", 0.1 * noise, RATE, "FLOAT")
    return tmp_path / "the meeting.wav"


def test_diarize(model, meeting, audio):
    expected = diarize(CSCForPreTraining.from_pretrained(model), meeting)
    assert expected.turns
    (told,) = objects(run("diarize", meeting, "--json", "--model", model))
    assert told == {"file": str(meeting), **json.loads(json.dumps(expected.to_dict()))}
    rows = [row.split("\t") for row in run("diarize", meeting, "--model", model).stdout.splitlines()]
    assert rows[0] == ["file", "start", "end", "speaker", "score"] and len(rows) == len(expected.turns) + 1
    assert rows[1][1:4] == [f"{expected.turns[0].start:.2f}", f"{expected.turns[0].end:.2f}", "speaker_1"]

    assert run("diarize", meeting, "--rttm", "-", "--model", model).stdout == expected.rttm("the_meeting")
    target, labels, voices = meeting.parent / "m.rttm", meeting.parent / "m.txt", meeting.parent / "voices"
    written = ["--rttm", target, "--audacity", labels, "--voices", voices, "--num-speakers", "1", "--json"]
    run("diarize", meeting, *written, "--model", model)
    one = diarize(CSCForPreTraining.from_pretrained(model), meeting, num_speakers=1)
    assert target.read_text() == one.rttm("the_meeting") and labels.read_text() == one.audacity()
    assert [path.name for path in voices.iterdir()] == ["speaker_1.wav"]
    nobody = run("diarize", audio / "silent.wav", "--rttm", "-", "--model", model)
    assert nobody.stdout == "" and f"warning: {str(audio / 'silent.wav')!r}: nobody speaks there" in nobody.stderr
    several = [meeting, audio / "broken.wav", audio / "a.wav"]
    result = run("diarize", *several, "--rttm", target, "--voices", voices, "--model", model, status=2)
    assert "cannot decode" in error_of(result) and str(audio / "broken.wav") in result.stderr
    names = {line.split()[1] for line in target.read_text().splitlines()}
    assert names == {"the_meeting", "a"} and {"the meeting", "a"} <= {path.name for path in voices.iterdir()}


@pytest.mark.parametrize("kind", ["mean", "attention"])
def test_people_of_a_store_are_named(kind, model, meeting, audio, tmp_path):
    store = tmp_path / "voices.safetensors"
    network = CSCForPreTraining.from_pretrained(model)
    settings = DiarizationSettings.load(network)
    dataclasses.replace(settings, name_threshold=-1.0).store(network)
    network.save_pretrained(tmp_path / "model")
    options = ["--store", store, "--model", tmp_path / "model"]
    run("enrol", "Zoë B", audio / "a.wav", *options, "--enrolment", kind)
    assert "Zoë B" in run("diarize", meeting, *options).stdout
    assert " Zoë_B " in run("diarize", meeting, *options, "--rttm", "-").stdout
    written = ["--rttm", tmp_path / "m.rttm", "--voices", tmp_path / "v", "--json"]  # RTTM alone has another name
    (told,) = objects(run("diarize", meeting, *options, *written))
    assert "Zoë B" in told["embeddings"] and (tmp_path / "v" / "Zoë B.wav").is_file()
    pcm = (soundfile.read(meeting)[0] * 32767).astype("<i2").tobytes()
    assert "Zoë B" in run("live", "-", "--latency", "0.5", *options, stdin=pcm).stdout


def test_an_odd_name_in_a_store_disables_nothing(model, meeting, audio, tmp_path):
    """Earlier versions enrolled people by names that no file can have."""
    store = store_of(tmp_path / "voices", model, "AC/DC", "Ben")
    pcm = bytes(3200)
    for words, stdin in ((["diarize", meeting], None), (["live", "-"], pcm)):
        result = run(
            *words, "--store", store, "--model", model, "--latency" if stdin else "--min-speakers", 1, stdin=stdin
        )
        (warning,) = result.stderr.splitlines()
        assert "a speaker cannot be called 'AC/DC'" in warning and "left out" in warning
    assert (
        len(objects(run("identify", audio / "a.wav", "--store", store, "--model", model, "--json"))[0]["voices"]) == 2
    )
    run("enrol", "Carl", audio / "a.wav", "--store", store, "--model", model)
    assert list(stores.VoiceStore.load(store).voices) == ["AC/DC", "Ben", "Carl"]


def test_live_of_a_pipe(model, meeting):
    samples = (soundfile.read(meeting)[0] * 32767).astype("<i2")
    live = LiveDiarizer(CSCForPreTraining.from_pretrained(model), 0.5)
    pieces = live.push(samples.astype(np.float32) / 32768) + live.finish()
    assert len(pieces) > len(join_turns(pieces)) > 0
    options = ["--latency", "0.5", "--model", model]
    told = objects(run("live", "-", *options, "--json", stdin=samples.tobytes()))
    assert [(one["start"], one["end"], one["speaker"]) for one in told] == [
        (piece.start, piece.end, piece.speaker) for piece in pieces
    ]
    rows = [row.split("\t") for row in run("live", "-", *options, stdin=samples.tobytes()).stdout.splitlines()]
    assert rows[0] == ["start", "end", "speaker", "score"]
    expected = sorted((f"{turn.start:.2f}", f"{turn.end:.2f}", turn.speaker) for turn in join_turns(pieces))
    assert sorted(tuple(row[:3]) for row in rows[1:]) == expected
    odd = run("live", "-", *options, stdin=samples.tobytes() + b"x")
    assert "ends within a sample" in odd.stderr
    assert sorted(tuple(row.split("\t")[:3]) for row in odd.stdout.splitlines()[1:]) == expected


@pytest.mark.parametrize("container", ["WAV", "FLAC", "MP3", "OGG"])
def test_live_decodes_what_is_encoded(model, meeting, container):
    """At another rate, which the header tells, whatever --rate says."""
    samples = soundfile.read(meeting)[0]
    file = io.BytesIO()
    soundfile.write(file, np.repeat(samples, 2), 2 * RATE, format=container)
    options = ["--latency", "0.5", "--model", model, "--json"]
    decoded = objects(run("live", "-", *options, "--rate", "8000", stdin=file.getvalue()))
    raw = objects(run("live", "-", *options, stdin=(samples * 32767).astype("<i2").tobytes()))
    assert decoded and decoded[-1]["end"] == pytest.approx(raw[-1]["end"], abs=0.15)


def test_live_names_what_it_cannot_decode(model):
    refused = run("live", "-", "--latency", "0.5", "--model", model, stdin=b"fLaC" + bytes(100), status=2)
    assert "cannot decode FLAC while it comes in" in error_of(refused)


class Microphone:
    """As sounddevice knows one: it hears a recording at 8 kHz, then somebody presses Ctrl-C."""

    class PortAudioError(Exception):
        pass

    def __init__(self, samples):
        self._blocks = iter(np.split(samples, range(800, len(samples), 800)))

    def query_devices(self, kind):
        if self._blocks is None:
            raise self.PortAudioError("Error querying device -1")
        return {"default_samplerate": 8000.0}

    @contextlib.contextmanager
    def InputStream(self, rate, size, channels, dtype):
        assert (rate, size, channels, dtype) == (8000.0, 800, 1, "float32")
        yield self

    def read(self, size):
        block = next(self._blocks, None)
        if block is None:
            raise KeyboardInterrupt
        return block[:, None], False


def test_live_of_a_microphone(model, meeting, monkeypatch):
    samples = soundfile.read(meeting, dtype="float32")[0][::2]
    monkeypatch.setitem(sys.modules, "sounddevice", Microphone(samples))
    told = objects(run("live", "--latency", "0.5", "--json", "--model", model))
    assert told and max(one["end"] for one in told) <= 2.0 and min(one["start"] for one in told) < 0.5
    silent = Microphone(samples)
    silent._blocks = None
    monkeypatch.setitem(sys.modules, "sounddevice", silent)
    result = run("live", "--latency", "0.5", "--model", model, status=2)
    assert "no microphone can be used (Error querying device -1)" in error_of(result) and result.stdout == ""
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    result = run("live", "--latency", "0.5", "--json", "--model", model, status=2)
    assert "pip install 'csc-hf[live]', or pipe raw PCM into csc-hf live -" in error_of(result)


def test_who_speaks_now_stands_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", Terminal())
    diarizer = types.SimpleNamespace(seconds=2.0)
    turns = Turns(diarizer)
    turns([Turn(0.0, 1.0, "anna", 0.9), Turn(0.5, 2.0, "ben", 0.8)])
    assert sys.stdout.getvalue() == "start\tend\tspeaker\tscore\n0.00\t1.00\tanna\t0.90\n"
    assert sys.stderr.getvalue().endswith("\x1b[K2 s: ben")
    diarizer.seconds = 3.0
    turns([Turn(2.0, 2.5, "ben", 0.6)])
    assert sys.stdout.getvalue().endswith("\n0.50\t2.50\tben\t0.75\n")
    assert sys.stderr.getvalue().endswith("\x1b[K3 s: nobody")


# --- export, evaluate and card ---------------------------------------------------------------------------------------


@pytest.mark.release
def test_export(model, tmp_path):
    out = tmp_path / "exported"
    rows = run("export", model, "--out", out, "--part", "embedding").stdout.splitlines()
    assert rows[0] == "part\tfile\tMB" and rows[1].startswith(f"embedding\t{out / 'embedding.onnx'}\t")
    assert {path.name for path in out.iterdir()} == {"embedding.onnx", "export.json"}
    (told,) = objects(run("export", model, "--out", out, "--part", "embedding", "--json"))
    assert told == {"model": model, "files": {"embedding": str(out / "embedding.onnx")}}
    assert "'no'" in error_of(run("export", model, "--out", out, "--part", "no", status=2))


def test_evaluate_and_card(model, tmp_path, monkeypatch):
    data = f"{write(tmp_path / 'speech', make_rows(12))}/*.parquet"
    options = ["--data", data, "--seconds", "0.1", "--num_resamples", "0", "--conditions", "clean", "mix0"]
    monkeypatch.setenv("CSC_HF_MODEL", model)
    result = run("evaluate", *options, "--json", "--output_dir", tmp_path / "out")
    (name, measured), *_ = json.loads(result.stdout)["results"].items()
    assert name == model and list(measured["conditions"]) == ["clean", "mix0"] and result.stderr == ""
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == json.loads(result.stdout)
    assert json.loads(result.stdout)["command"].startswith("csc-hf evaluate --data ")

    script = ROOT / "examples" / "evaluate_verification.py"
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main([model, *options, "--output_dir", str(tmp_path / "script")])
    of_script = json.loads((tmp_path / "script" / "results.json").read_text())
    assert of_script["results"] == {model: measured}

    results = tmp_path / "out" / "results.json"
    card = tmp_path / "card.md"
    assert run("card", "--results", results, "--name", "someone/mine", "--out", card).stdout == ""
    text = card.read_text()
    assert 'from_pretrained("someone/mine"' in text and measured["trials_sha256"][:12] in text and "CSCForPre" in text
    (told,) = objects(run("card", "--results", results, "--json"))
    assert told["architecture"] == "CSCForPreTraining" and told["slots"] == 2 and told["calibrations"] == []
    assert told["card"] == text.replace("someone/mine", Path(model).name)
    other = run("card", "--results", results, "--model", ROOT / "model_cards" / "csc-small", status=2)
    assert "evaluate this model first" in error_of(other)


def test_the_card_of_the_shipped_model(monkeypatch):
    monkeypatch.delenv("CSC_HF_MODEL", raising=False)
    assert run("card").stdout.strip() == (ROOT / "model_cards" / "csc-small" / "README.md").read_text().strip()


# --- progress --------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_for_terminals(model, audio, monkeypatch):
    found = [inputs.Recording(audio / f"{name}.wav", name) for name in ("a", "b", "broken")]
    encoder = CSCModel.from_pretrained(model).eval()

    def work(recording):
        embed_audio(encoder, recording.path)
        print("done", recording.name)

    for stream, is_shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        status = for_each(Progress("embedding", encoder, found), work)
        assert status == 2 and "cannot decode 'broken'" in stream.getvalue()
        assert ("embedding" in stream.getvalue() and "100%" in stream.getvalue()) == is_shown
        assert sys.stdout.getvalue() == "done a\ndone b\n"
    assert not encoder._forward_hooks


def test_no_binary_data_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    with pytest.raises(ValueError, match="would write binary data to the terminal"):
        check_stdout("-")
    check_stdout("file")


def test_a_table_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    with Table("file", "score") as table:
        table.add("[red]a.wav", 0.123)
        table.add("b.wav", None)
        table.add("c.wav", -10.0)
    lines = [re.sub(r"\x1b\[\d+m", "", line).rstrip() for line in sys.stdout.getvalue().splitlines()]
    assert [line.split() for line in lines] == [
        ["file", "score"],
        ["[red]a.wav", "0.12"],
        ["b.wav", "-"],
        ["c.wav", "-10.00"],
    ]
    assert len({len(line) for line in lines}) == 1, "numbers end below each other"
