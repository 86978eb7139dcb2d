# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
import contextlib
import itertools
import os
import shutil
import time
from pathlib import Path

import pytest
from pretraining_runs import forked

from csc_hf.training.checkpoints import (
    begin_folder,
    delete_checkpoints,
    finish_folder,
    list_checkpoints,
    move_files,
)


def save_for_ever(run):
    for step in itertools.count(1):
        for folder in (run / f"checkpoint-{step}", run / "best"):
            unfinished = begin_folder(folder)
            for part in range(20):
                (unfinished / f"{part}.bin").write_bytes(str(step).encode() * 50_000)
            finish_folder(folder)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "delay", [0.013, *(pytest.param(delay, marks=pytest.mark.release) for delay in (0.0, 0.029, 0.047))]
)
def test_what_has_its_name_is_whole_whenever_the_run_is_killed(tmp_path, delay):
    process = forked(save_for_ever, tmp_path)
    while not (tmp_path / "checkpoint-3").exists():
        assert process.is_alive()
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    process.join()
    checkpoints = list_checkpoints(tmp_path)
    assert [path.name for path in checkpoints] == [f"checkpoint-{n}" for n in range(1, len(checkpoints) + 1)]
    assert len(checkpoints) >= 3
    for number, path in enumerate(checkpoints, start=1):
        assert contents(path) == {f"{part}.bin": str(number).encode() * 50_000 for part in range(20)}
    best = tmp_path / "best"
    if not best.exists():  # killed between two renames: the former one comes back with the next save
        begin_folder(best)
    assert len({len(data) for data in contents(best).values()}) == 1 and len(contents(best)) == 20


@pytest.mark.parametrize("calls", range(6))
def test_what_has_its_name_is_whole_wherever_saving_is_cut_off(tmp_path, monkeypatch, calls):
    """After so many of the calls that move or delete."""

    def save(text):
        for part in "ab":
            (begin_folder(tmp_path / "best") if part == "a" else tmp_path / "best.unfinished").joinpath(
                part
            ).write_text(text)
        finish_folder(tmp_path / "best")

    save("old")
    done = 0

    def cut_off(call):
        def count(*arguments, **options):
            nonlocal done
            if done == calls:
                raise KeyboardInterrupt
            done += 1
            return call(*arguments, **options)

        return count

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", cut_off(Path.rename))
        patch.setattr(shutil, "rmtree", cut_off(shutil.rmtree))
        with contextlib.suppress(KeyboardInterrupt):
            save("new")
    if not (tmp_path / "best").exists():
        begin_folder(tmp_path / "best")
    assert contents(tmp_path / "best") in ({"a": b"old", "b": b"old"}, {"a": b"new", "b": b"new"})
    save("newer")
    assert contents(tmp_path / "best") == {"a": b"newer", "b": b"newer"}
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    folder, synced = tmp_path / "checkpoint-1", []
    (begin_folder(folder) / "part").mkdir()
    (tmp_path / "checkpoint-1.unfinished" / "part" / "file").write_text("text")
    sync = os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda number: (synced.append((os.readlink(f"/proc/self/fd/{number}"), folder.exists())), sync(number)),
    )
    finish_folder(folder)
    unfinished = str(tmp_path / "checkpoint-1.unfinished")
    assert {(f"{unfinished}/part/file", False), (f"{unfinished}/part", False), (unfinished, False)} <= set(synced)
    assert synced[-1] == (str(tmp_path), True)


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "checkpoint-7"
    for text in ("old", "new"):
        unfinished = begin_folder(folder)
        (unfinished / "part").mkdir()
        (unfinished / "part" / f"{text}.txt").write_text(text)
        assert [path.name for path in list_checkpoints(tmp_path)] == ([] if text == "old" else ["checkpoint-7"])
        finish_folder(folder)
    assert [path.name for path in (folder / "part").iterdir()] == ["new.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-7"]


def test_a_former_folder_comes_back(tmp_path):
    """Killed after the former one had been renamed, and before the new one was."""
    (tmp_path / "best.former").mkdir()
    (tmp_path / "best.former" / "model").write_text("former")
    (tmp_path / "best.unfinished").mkdir()
    begin_folder(tmp_path / "best")
    assert contents(tmp_path / "best") == {"model": b"former"}
    assert not list((tmp_path / "best.unfinished").iterdir())


def test_files_are_moved_beside_what_is_there(tmp_path):
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "model").write_text("old")
    unfinished = begin_folder(tmp_path / "final")
    (unfinished / "model").write_text("new")
    move_files(unfinished, tmp_path)
    assert (tmp_path / "model").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "model"]


def test_a_system_that_cannot_flush_folders_saves_and_says_so(tmp_path, monkeypatch, caplog):
    """Windows opens no folders."""
    system_open = os.open

    def refuse_folders(path, *arguments):
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        return system_open(path, *arguments)

    monkeypatch.setattr(os, "open", refuse_folders)
    for step in (1, 2):
        (begin_folder(tmp_path / f"checkpoint-{step}") / "file").write_text("text")
        finish_folder(tmp_path / f"checkpoint-{step}")
    assert contents(tmp_path / "checkpoint-2") == {"file": b"text"}
    assert caplog.text.count("cannot flush folders") == 1


def test_the_newest_are_kept(tmp_path):
    for step in (5, 100, 20, 1000):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-30.unfinished").mkdir()
    (tmp_path / "checkpoint-20.deleted").mkdir()
    (tmp_path / "checkpoint-20.deleted" / "rest").write_text("")  # of a run that was killed
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in (5, 20, 100, 1000)]
    delete_checkpoints(tmp_path, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-100", "checkpoint-1000"]
    assert not list(tmp_path.glob("*.deleted"))
    delete_checkpoints(tmp_path, keep=5)
    assert len(list_checkpoints(tmp_path)) == 2
