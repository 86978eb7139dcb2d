# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Folders of a run that are either complete or not there: `checkpoint-100`, `checkpoint-200`, ...

A folder is written under another name, flushed to the disk, and renamed. Whenever a run is killed, what has a
checkpoint's name is complete.
"""

import functools
import logging
import os
import re
import shutil
from pathlib import Path

logger = logging.getLogger(__name__)


def begin_folder(folder: Path) -> Path:
    """Make the empty folder to write into, beside `folder`; what a killed run left there is deleted."""
    unfinished, former = _beside(folder, "unfinished"), _beside(folder, "former")
    if former.exists() and not folder.exists():
        former.rename(folder)  # killed between the renames of `finish_folder`
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    return unfinished


def sync_folder(folder: Path) -> None:
    """Wait until the content of a folder is on the disk. Every process does that for what it wrote."""
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def finish_folder(folder: Path) -> None:
    """Rename what was written in `begin_folder(folder)` to `folder`; a folder of that name is replaced."""
    unfinished, former = _beside(folder, "unfinished"), _beside(folder, "former")
    sync_folder(unfinished)
    shutil.rmtree(former, ignore_errors=True)
    if folder.exists():
        folder.rename(former)
    unfinished.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(former, ignore_errors=True)


def move_files(unfinished: Path, folder: Path) -> None:
    """Move the files of a folder into another one that also holds other things, and delete the first.

    Each file is replaced at once: whenever a run is killed, no file is there in part.
    """
    sync_folder(unfinished)
    for path in sorted(unfinished.iterdir()):
        path.replace(folder / path.name)
    _sync(folder)
    unfinished.rmdir()


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, the newest last."""
    steps = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in run.glob("checkpoint-*")}
    return sorted((path for path, match in steps.items() if match), key=checkpoint_step)


def checkpoint_step(checkpoint: Path) -> int:
    """The training step of a checkpoint, which is in its name."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def delete_checkpoints(run: Path, keep: int) -> None:
    """Delete all checkpoints but the `keep` newest."""
    for path in run.glob("checkpoint-*.deleted"):  # by a run that was killed
        shutil.rmtree(path)
    for path in list_checkpoints(run)[:-keep]:
        # Without a checkpoint's name, in case this is interrupted.
        shutil.rmtree(path.rename(_beside(path, "deleted")))


def _beside(folder: Path, ending: str) -> Path:
    return folder.with_name(f"{folder.name}.{ending}")


def _sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    is_folder = path.is_dir()
    try:
        # Windows flushes only what is open for writing, and cannot open folders.
        descriptor = os.open(path, os.O_RDONLY if is_folder or os.name != "nt" else os.O_RDWR)
    except PermissionError:
        if not is_folder:
            raise
        _tell_that_folders_are_not_flushed()
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@functools.cache  # once
def _tell_that_folders_are_not_flushed() -> None:
    logger.warning(
        "this system cannot flush folders to the disk: after a power failure, the newest checkpoint may be missing"
    )
