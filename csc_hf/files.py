# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Where results are written: checked before the work, and each file complete or not there."""

import contextlib
import io
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

UNFINISHED = ".csc-hf-"
"""Beginning of the names of folders that hold files which are being written. They lie beside the files."""


def check_target(path: str | os.PathLike) -> None:
    """
    Check that a file can be written, before the work whose result it will hold.

    Raises:
        ValueError: The path is a folder, its own folder is missing, or nothing can be written there.
    """
    given = Path(path)
    if given.is_dir():
        raise ValueError(f"{os.fspath(path)!r} is a folder: choose the name of a file")
    if _is_stream(given) or _is_same_file(given, sys.stdout):
        return
    target = given.resolve()  # a link stays one
    if not target.parent.is_dir():
        raise ValueError(f"no folder {str(given.parent)!r} to write to: make it first")
    if target.exists() and not os.access(target, os.W_OK):
        raise ValueError(f"cannot write to {os.fspath(path)!r}: Permission denied: choose another file")
    _try_folder(target.parent, path)


def check_folder(path: str | os.PathLike) -> Path:
    """
    Make a folder if need be, and check that files can be written to it, before the work.

    Returns:
        The folder.

    Raises:
        ValueError: It cannot be made, it is a file, or nothing can be written to it.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ValueError(f"{os.fspath(path)!r} is a file, and a folder is needed: choose another name") from None
    except OSError as error:
        raise ValueError(f"cannot make the folder {os.fspath(path)!r}: {error.strerror}: choose another") from error
    _try_folder(folder, path)
    return folder


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[Path]:
    """
    Write a file that is complete or not there, whatever happens meanwhile.

    The body writes to the path that it is given, which has the same name and lies in a folder beside the target. In
    the end that file is flushed to the disk and takes the place of the target. A device, a pipe, and what is standard
    output already, such as `/dev/stdout`, are written to instead. If the body raises, the target stays as it was.

    Raises:
        ValueError: As [`check_target`].
    """
    check_target(path)
    given = Path(path)
    target = given.resolve()
    is_stdout = _is_same_file(given, sys.stdout)
    is_stream = is_stdout or _is_stream(given)
    # There may be no room for a file beside a device.
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=None if is_stream else target.parent) as folder:
        unfinished = Path(folder, given.name)  # whose ending may say the format
        yield unfinished
        if is_stdout:
            sys.stdout.flush()
            with unfinished.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.flush()
        elif is_stream:
            with unfinished.open("rb") as file, given.open("wb") as stream:
                shutil.copyfileobj(file, stream)
        else:
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())
            unfinished.replace(target)


def write_file(path: str | os.PathLike, content: bytes | str) -> None:
    """Write a file as [`writing`] does: bytes, or text as UTF-8."""
    with writing(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


def escape_unprintable() -> None:
    r"""Let what the encoding of standard output or error lacks, such as a Cyrillic name on a Western console, be
    printed as an escape (\u043e) instead of ending the run. Every script calls this first; `csc-hf` does the same."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _is_stream(path: Path) -> bool:
    """Whether there is something that is no regular file, such as a device or a pipe: it must not be replaced."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _is_same_file(path: Path, stream: IO[str] | None) -> bool:
    """Whether a path is what a stream writes to. To put a file in its place would cut the stream off."""
    try:
        return stream is not None and os.path.samestat(path.stat(), os.fstat(stream.fileno()))
    except (OSError, ValueError):
        return False


def _try_folder(folder: Path, named: str | os.PathLike) -> None:
    """Only making a file tells whether one can be made: there are read-only disks, quotas, and network folders."""
    try:
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"cannot write to {os.fspath(named)!r}: {error.strerror}: choose another place") from error
