# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""The command `csc-hf`: parses, calls the rest of the package, prints.

Each family of commands has a module; this one puts them together. Nothing here imports torch before a command runs,
so that `--help` answers at once. `csc_hf_cli.py` starts it.
"""

from typing import Annotated

import typer

from .card import card
from .diarization import diarize
from .embedding import embed
from .errors import Commands
from .evaluation import evaluate
from .export import export
from .live import live
from .options import FLAG
from .separation import extract, separate
from .voices import enrol, identify, verify

app = typer.Typer(
    cls=Commands,
    name="csc-hf",
    add_completion=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def version(show: bool) -> None:
    if show:
        from csc_hf import __version__

        print(f"csc-hf {__version__}")
        raise typer.Exit


@app.callback()
def manual(
    show_version: Annotated[
        bool,
        typer.Option("--version", metavar=FLAG, help="Print the version and exit.", callback=version, is_eager=True),
    ] = False,
) -> None:
    """
    Who speaks, when others speak too: verify, enrol, identify, diarize and separate voices.

    ```
    csc-hf verify anna.wav meeting.wav        # is it the same voice?
    csc-hf enrol Anna anna1.wav anna2.wav --store voices.safetensors
    csc-hf identify calls/ --store voices.safetensors
    csc-hf diarize meeting.wav --rttm meeting.rttm
    arecord -t raw -f S16_LE -r 16000 | csc-hf live -
    csc-hf separate meeting.wav --out separated
    csc-hf extract meeting.wav --enrol anna.wav --out anna-only.wav
    ```

    **Recordings** are audio files of any length and sampling rate, folders that are searched for them, and glob
    patterns. A path that exists is a path, whatever its letters. `-` is standard input.

    **The model** is `--model`: a folder, or a name on the Hub. Without it, it is `$CSC_HF_MODEL`; else csc-small,
    from a clone of the repository or from the cache of the Hub.

    **Results** go to standard output: a table on a terminal, lines with tabs elsewhere, and JSON with `--json`, an
    object a line. Progress and errors go to standard error.

    **Exit status**: 0 done (`verify`: same voice), 1 different voices (`verify`) or no such voice (`extract`), 2 an
    error, 3 nothing decided (`verify` only), 130 interrupted, 141 nobody reads the output. Where one of several
    recordings cannot be used, the others are, and the status is 2.

    `csc-hf COMMAND --help` explains a command.
    """


for command in (embed, verify, enrol, identify, diarize, live, separate, extract):
    app.command()(command)
# argparse reads its options, as in examples/evaluate_verification.py.
passed_on = {"ignore_unknown_options": True, "allow_extra_args": True}
app.command(add_help_option=False, context_settings=passed_on)(evaluate)
app.command()(export)
app.command()(card)
