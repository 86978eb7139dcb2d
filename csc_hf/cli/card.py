# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""`csc-hf card`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .models import check_model, load_model
from .options import Json, Model
from .output import print_json
from .recordings import STDIN


def card(
    results: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Render a new card with the figures of a results.json of csc-hf evaluate."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="What the new card calls the model, such as user/name.")] = None,
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="FILE", help="File to write; - for standard output.")
    ] = "-",
    as_json: Json = False,
    model: Model = None,
) -> None:
    """
    Print the card of a model, or render one from what was measured.

    ```
    csc-hf card
    csc-hf card --json
    csc-hf evaluate runs/mine --data speech/ --output_dir runs/evaluation
    csc-hf card --model runs/mine --results runs/evaluation/results.json \\
        --name user/mine --out runs/mine/README.md
    ```

    `--json` prints an object with the facts of the model (`model`, `architecture`, `parameters`, `slots`,
    `embedding_size`, `sampling_rate`, `calibrations`) and the text of the card.
    """
    from ..files import check_target, write_file

    if out != STDIN:
        check_target(out)
    model_name = check_model(model)
    text = read_card(model_name) if results is None else new_card(model_name, results, name)
    if text is None and not as_json:
        raise ValueError(f"{model_name!r} has no card: render one with --results")
    if out != STDIN and text is not None:
        write_file(out, text)
    if as_json:
        print_json({**facts(model_name), "card": text})
    elif out == STDIN and text is not None:
        print(text)


def facts(name: str) -> dict[str, Any]:
    model = load_model(name)
    return {
        "model": name,
        "architecture": type(model).__name__,
        "parameters": model.num_parameters(),
        "slots": model.config.num_sources,
        "embedding_size": model.config.speaker_embedding_size,
        "sampling_rate": model.config.sampling_rate,
        "calibrations": sorted(model.config.calibration or {}),
    }


def read_card(name: str) -> str | None:
    """The README.md of a folder or of a repository on the Hub; None if there is none."""
    from transformers.utils import cached_file

    path = cached_file(name, "README.md", _raise_exceptions_for_missing_entries=False)
    return None if path is None else Path(path).read_text(encoding="utf-8")


def new_card(name: str, results: Path, called: str | None) -> str:
    """A card with the figures of this model in a results.json."""
    try:
        measured = json.loads(results.read_text(encoding="utf-8"))["results"]
        names = list(measured)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{str(results)!r} is no results.json of csc-hf evaluate") from error
    key = next((one for one in names if one == name or Path(one).resolve() == Path(name).resolve()), None)
    if key is None:
        raise ValueError(
            f"{str(results)!r} has figures of {', '.join(names)}, not of {name!r}: evaluate this model first"
        )
    from ..evaluation.reports import format_report
    from ..training.hub import card_origin, render_card

    report = f"```\n{format_report(measured[key])}\n```"
    return str(render_card(load_model(name), report, called or Path(name).name, card_origin(name)))
