# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Results are checked before the work, and each file is complete or not there."""

import io
import os
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import soundfile

from csc_hf.cli.files import write_voices
from csc_hf.files import check_folder, check_target, escape_unprintable, write_file, writing
from csc_hf.long_audio import file_writer

ROOT = Path(__file__).resolve().parents[1]
posix = pytest.mark.skipif(os.name != "posix", reason="devices and pipes of POSIX")


def test_a_file_is_complete_or_not_there(tmp_path):
    target = tmp_path / "results.txt"
    write_file(target, "élan")
    assert target.read_text(encoding="utf-8") == "élan"
    with pytest.raises(KeyboardInterrupt), writing(target) as unfinished:
        unfinished.write_text("half of it")
        raise KeyboardInterrupt
    assert target.read_text(encoding="utf-8") == "élan"
    assert list(tmp_path.iterdir()) == [target], "nothing is left beside it"


def test_audio_that_is_interrupted_is_not_there(tmp_path):
    paths = [tmp_path / "a.wav", tmp_path / "b.flac"]
    blocks = np.full((2, 100), 0.25, np.float32)
    with pytest.raises(KeyboardInterrupt), ExitStack() as files:
        file_writer(paths, 16000, files)(blocks)
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with ExitStack() as files:
        write = file_writer(paths, 16000, files)
        write(blocks)
        write(blocks)
        assert not any(path.exists() for path in paths)
    for path in paths:
        assert np.allclose(soundfile.read(path)[0], np.full(200, 0.25)), path
    with pytest.raises(ZeroDivisionError):
        write_voices(lambda parts: 1 / 0, [str(paths[0])], tmp_path)
    assert soundfile.info(paths[0]).frames == 200


@posix
def test_what_is_no_regular_file_is_written_to_and_stays(tmp_path):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    heard: list[bytes] = []
    reader = threading.Thread(target=lambda: heard.append(pipe.read_bytes()))
    reader.start()
    write_file(pipe, "turns")
    reader.join(timeout=10)
    assert heard == [b"turns"] and pipe.is_fifo()
    link.symlink_to("target")
    write_file(link, "through")
    assert link.is_symlink() and (tmp_path / "target").read_text() == "through"
    write_file("/dev/null", "x")
    assert Path("/dev/null").is_char_device()


@posix
@pytest.mark.parametrize("to_file", [False, True])
def test_standard_output_by_its_name(tmp_path, to_file):
    code = (
        "from csc_hf.files import write_file; print('before'); write_file('/dev/stdout', 'turns\\n'); print('after')"
    )
    code = (
        f"import sys, types; sys.modules['csc_hf'] = p = types.ModuleType('csc_hf'); p.__path__ = ['csc_hf']\n{code}"
    )
    with (tmp_path / "out").open("w+b") as file:
        stdout = file if to_file else subprocess.PIPE
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=stdout, check=True)
        file.seek(0)
        assert (file.read() if to_file else done.stdout) == b"before\nturns\nafter\n"


def test_what_cannot_be_written_is_named_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a folder: choose the name of a file"):
        check_target(tmp_path)
    with pytest.raises(ValueError, match="no folder '.*none' to write to: make it first"):
        check_target(tmp_path / "none" / "x.txt")
    with pytest.raises(ValueError, match="'.*file' is a file, and a folder is needed"):
        check_folder(tmp_path / "file")
    with pytest.raises(ValueError, match="cannot make the folder '.*deep': Not a directory"):
        check_folder(tmp_path / "file" / "deep")
    assert check_folder(tmp_path / "a" / "b").is_dir()
    if Path("/proc/self").exists():  # where nobody can make a file, whatever the permissions say
        with pytest.raises(ValueError, match="cannot write to '/proc/x.rttm'"):
            check_target("/proc/x.rttm")
        with pytest.raises(ValueError, match="cannot write to '/proc'"):
            check_folder("/proc")


def test_what_a_code_page_lacks_is_escaped(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="cp1252"))
    escape_unprintable()
    print("é ≥ \u043e", flush=True)
    assert raw.getvalue().strip() == b"\xe9 \\u2265 \\u043e"


def test_every_script_escapes_what_it_cannot_print():
    scripts = [path for folder in ("examples", "benchmarks", "model_cards") for path in (ROOT / folder).rglob("*.py")]
    mains = {path: text for path in scripts if "\ndef main(" in (text := path.read_text(encoding="utf-8"))}
    assert len(mains) > 15
    missing = [path.name for path, text in mains.items() if "\n    escape_unprintable()\n" not in text]
    assert not missing, f"their main() calls csc_hf.files.escape_unprintable() first: {missing}"
