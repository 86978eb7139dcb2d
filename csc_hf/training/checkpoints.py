# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Folders of a run that are either whole or not there: `checkpoint-100`, `checkpoint-200`, ...

A folder is written under another name, brought to the disk, and renamed. Whatever moment a run is killed at, what
bears a checkpoint's name is complete.
"""

import os
import re
import shutil
from pathlib import Path


def begin_folder(folder: Path) -> Path:
    """Make the empty folder to write into, for `folder`; what a killed run left there is deleted."""
    unfinished, former = _beside(folder, "unfinished"), _beside(folder, "former")
    if former.exists() and not folder.exists():
        former.rename(folder)  # killed between the renames of `finish_folder`
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    return unfinished


def sync_folder(folder: Path) -> None:
    """Wait until all that was written in a folder lies on the disk. Every process does that for what it wrote."""
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def finish_folder(folder: Path) -> None:
    """Give what was written in `begin_folder(folder)` its name; a folder that had it before is replaced."""
    unfinished, former = _beside(folder, "unfinished"), _beside(folder, "former")
    sync_folder(unfinished)
    shutil.rmtree(former, ignore_errors=True)
    if folder.exists():
        folder.rename(former)
    unfinished.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(former, ignore_errors=True)


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, the newest last."""
    steps = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in run.glob("checkpoint-*")}
    return sorted((path for path, match in steps.items() if match), key=lambda path: int(steps[path][1]))


def delete_checkpoints(run: Path, keep: int) -> None:
    """Delete all checkpoints but the `keep` newest."""
    for path in run.glob("checkpoint-*.deleted"):  # by a run that was killed
        shutil.rmtree(path)
    for path in list_checkpoints(run)[:-keep]:
        # No checkpoint any more, should this be interrupted.
        shutil.rmtree(path.rename(_beside(path, "deleted")))


def _beside(folder: Path, ending: str) -> Path:
    return folder.with_name(f"{folder.name}.{ending}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
