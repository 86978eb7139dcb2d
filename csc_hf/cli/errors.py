# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""How a command ends: one line on standard error, and an exit status."""

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

import typer
import typer.core

SAME, DIFFERENT, ERROR, UNDECIDED, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 3, 130, 141
"""Exit statuses."""

EXTRAS = {
    "cli": ("scipy",),
    "eval": ("datasets", "evaluate", "matplotlib", "tqdm"),
    "export": ("onnx", "onnxruntime", "onnxscript"),
}
"""Extras beside `audio` that a command may miss, with packages of each."""


def fail(message: str) -> None:
    """Print an error as one line on standard error."""
    print("csc-hf:", printable(" ".join(message.split())), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    r"""Text without characters that move the cursor of a terminal or worse, which names of files can hold: \x1b."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def explain(error: Exception) -> str:
    """The first line of what an error says."""
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        extra = next((extra for extra, names in EXTRAS.items() if error.name in names), "audio")
        return f"{error.name} is not installed: pip install 'csc-hf[{extra}]'"
    if hasattr(error, "format_message"):  # of the command line
        return error.format_message()
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename!r}: {error.strerror}" if error.filename else error.strerror
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return (
        first
        if isinstance(error, ValueError | OSError | ImportError) and first
        else f"{type(error).__name__}: {first}"
    )


class Commands(typer.core.TyperGroup):
    """The group of commands. Whatever happens, it ends with a line on standard error and an exit status."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Any:
        options["standalone_mode"] = False
        args = sys.argv[1:] if args is None else args
        # `csc_hf.files.escape_unprintable`, which would import torch before `--help` is printed.
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            status = super().main(args or ["--help"], *more, **options)
            sys.stdout.flush()
        except (KeyboardInterrupt, typer.Abort):
            status = INTERRUPTED
        except Exception as error:
            if isinstance(error, BrokenPipeError):
                status = PIPE_CLOSED
            else:
                status = ERROR
                fail(explain(error))
            if isinstance(error, OSError):
                discard_output()
        sys.exit(status or 0)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:  # typer would exit with 1, which means different voices
            discard_output()
            raise typer.Exit(PIPE_CLOSED) from error


def discard_output() -> None:
    """Python flushes standard output once more as it ends, and would complain where that cannot be written."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        return
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
