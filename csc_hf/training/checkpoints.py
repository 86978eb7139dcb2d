# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Folders of a run that are either complete or not there: `checkpoint-100`, `checkpoint-200`, ...

A folder is written under another name, flushed to the disk, and renamed. Whenever a run is killed, what has a
checkpoint's name is complete.

A checkpoint is a Hub repository and, in `training_state`, what resuming needs besides.
"""

import functools
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate import Accelerator

from ..data.stream import MixtureStream

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


def move_files(unfinished: Path, folder: Path) -> list[str]:
    """Move the files of a folder into another one that also holds other things, and delete the first.

    Each file is replaced at once: whenever a run is killed, no file is there in part.

    Returns:
        The names of the files.
    """
    sync_folder(unfinished)
    paths = sorted(unfinished.iterdir())
    for path in paths:
        path.replace(folder / path.name)
    _sync(folder)
    unfinished.rmdir()
    return [path.name for path in paths]


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


def save_checkpoint(
    accelerator: Accelerator,
    folder: Path,
    write_repository: Callable[[Path], None],
    progress: Mapping[str, Any],
    stream: MixtureStream,
    extra: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write a checkpoint. All processes call this.

    Args:
        accelerator: has prepared the model, the optimizer and the schedule.
        folder: `checkpoint-100` in the folder of the run.
        write_repository: writes the Hub repository into a folder; called on the main process.
        progress: of the main process, what JSON takes: `load_checkpoint` returns it.
        stream: of this process.
        extra: what else has a `state_dict`, by a name. What Accelerate's `register_for_checkpointing` takes would be
            loaded as a pickle, which can run any code.
    """
    if accelerator.is_main_process:
        unfinished = begin_folder(folder)
        write_repository(unfinished)
        (unfinished / "training_state").mkdir()
        for name, part in extra.items():
            torch.save(part.state_dict(), unfinished / "training_state" / f"{name}.pt")
        (unfinished / "training_state" / "progress.json").write_text(json.dumps(progress))
    accelerator.wait_for_everyone()
    unfinished = _beside(folder, "unfinished")
    # Not as safetensors: on a GPU, the weights of an LSTM are parts of one buffer, and all but one would be left out.
    accelerator.save_state(str(unfinished / "training_state"), safe_serialization=False)
    stream_state = unfinished / "training_state" / f"stream_{accelerator.process_index}.json"
    stream_state.write_text(json.dumps(stream.state_dict()))
    accelerator.wait_for_everyone()  # while one still writes, there are files that come and go
    sync_folder(unfinished)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        finish_folder(folder)


def load_checkpoint(
    accelerator: Accelerator,
    checkpoint: Path,
    settings: Mapping[str, Any],
    stream: MixtureStream,
    extra: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Continue from a checkpoint, exactly where the settings and the number of processes and workers are the same.

    Args:
        accelerator: as above.
        checkpoint: its folder.
        settings: those of this run, to be compared with `progress["settings"]`: changes are logged.
        stream: of this process.
        extra: as above.

    Returns:
        The `progress` that was saved.
    """
    state = checkpoint / "training_state"
    progress = json.loads((state / "progress.json").read_text())
    for name, value in json.loads(json.dumps(settings)).items():
        if value != (former := progress["settings"].get(name)):
            logger.warning(
                "%s was %r before and is %r now: the run goes on, but not as it would have", name, former, value
            )
    for path in state.glob("custom_checkpoint_*.pkl"):
        try:  # what Accelerate is about to unpickle, which could run any code
            torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(f"{str(path)!r} is damaged, or holds more than numbers: it is not loaded") from error
    accelerator.load_state(str(state))
    for name, part in extra.items():
        part.load_state_dict(torch.load(state / f"{name}.pt", map_location="cpu", weights_only=True))
    _load_stream(stream, [json.loads(path.read_text()) for path in sorted(state.glob("stream_*.json"))])
    logger.info("resumed from %s", checkpoint)
    return progress


def _load_stream(stream: MixtureStream, states: list[Mapping[str, Any]]) -> None:
    """Continue reading where the streams of all former processes stopped."""
    former = states[0]["world_size"], states[0]["num_workers"]
    now = stream.shard.world_size, stream.num_workers
    if former == now:
        (own,) = (state for state in states if state["rank"] == stream.shard.rank)
        stream.load_state_dict(own)
        return
    logger.warning(
        "the checkpoint was made by %d processes with %d workers each, this run has %d with %d: rows that were "
        "not read yet in their epoch are read next, each once, and the audio held then is dropped; the batches "
        "are not those that they would have been",
        *former,
        *now,
    )
    stream.take_over(states)


def find_checkpoint(resume_from: str | None, run: Path) -> Path | None:
    """The folder that `--resume_from_checkpoint` means; None to start from the beginning.

    Raises:
        SystemExit: it is not a checkpoint.
    """
    if resume_from is None:
        return None
    if resume_from != "latest":
        folder = Path(resume_from)
        if not (folder / "training_state").is_dir():
            raise SystemExit(f"--resume_from_checkpoint {folder}: no checkpoint of a training is there")
        return folder
    checkpoints = list_checkpoints(run)
    if not checkpoints:
        logger.warning("no checkpoint in %s yet: starting from the beginning", run)
        return None
    return checkpoints[-1]


def refuse_later_checkpoints(run: Path, step: int) -> None:
    """Check that a run that goes on after a step would not overwrite later checkpoints.

    Raises:
        SystemExit: there are some.
    """
    if later := [path for path in list_checkpoints(run) if checkpoint_step(path) > step]:
        raise SystemExit(
            f"{run} has checkpoints of another run, or of what came after step {step}: "
            f"{', '.join(path.name for path in later)}. Delete them, resume from 'latest', or use another "
            "--output_dir"
        )


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
