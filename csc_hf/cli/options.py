# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""The arguments and options that several commands share."""

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Kind(StrEnum):
    """`csc_hf.evaluation.calibration.ENROLMENTS`, which cannot be imported here. A test compares the two."""

    mean = "mean"
    attention = "attention"
    scorer = "scorer"


class Part(StrEnum):
    """`csc_hf.export.PARTS`, which cannot be imported here. A test compares the two."""

    embedding = "embedding"
    separation = "separation"
    activity = "activity"
    scorer = "scorer"


FLAG = ""
"""As metavar: the help shows no type, where some versions of typer would say `<bool>`."""


def finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no finite number.")
    return value


def from_one(value: int | None) -> int | None:
    if value is not None and value < 1:
        raise typer.BadParameter(f"{value}: give a whole number from 1 on.")
    return value


Model = Annotated[
    str | None, typer.Option("--model", "-m", metavar="MODEL", help="Folder of a CSC model, or its name on the Hub.")
]
Json = Annotated[bool, typer.Option("--json", metavar=FLAG, help="Print JSON, an object a line.")]
Files = Annotated[list[str], typer.Argument(metavar="FILES", help="Files, folders, glob patterns, or -.")]
Channel = Annotated[
    int | None,
    typer.Option(metavar="N", min=0, help="Hear one channel only, counted from 0; else the average of all."),
]
Store = Annotated[Path, typer.Option("--store", "-s", metavar="FILE", help="Store of voices, a .safetensors file.")]
Threshold = Annotated[
    float | None,
    typer.Option(
        callback=finite, help="Lowest score that counts as the same voice. Replaces the model's calibration."
    ),
]
Condition = Annotated[
    str | None, typer.Option(help="Condition of the calibration to use, where the model has several.")
]
Speakers = Annotated[
    int | None,
    typer.Option("--max-speakers", metavar="N", callback=from_one, help="The most people that may speak."),
]
KIND_HELP = (
    "How voices are compared: with the mean embedding of the enrolment, by the trained cross-attention, or by the "
    "scorer of CSCForSpeakerVerification."
)
