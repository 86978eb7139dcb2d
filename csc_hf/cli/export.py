# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""`csc-hf export`."""

from pathlib import Path
from typing import Annotated

import typer

from .models import check_model
from .options import FLAG, Json, Part
from .output import Table, print_json


def export(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to write to, made if needed.")],
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Folder of a CSC model, or its name on the Hub.")
    ] = None,
    parts: Annotated[
        list[Part] | None,
        typer.Option("--part", help="Part to export; repeatable. Without it, all."),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", metavar=FLAG, help="Write files with 8-bit weights as well.")
    ] = False,
    as_json: Json = False,
) -> None:
    """
    Export a model as ONNX files, which run without PyTorch and this package.

    ```
    csc-hf export runs/mine --out exported
    csc-hf export runs/mine --out exported --part embedding --int8
    ```

    Each part is a file that computes no more than it returns, for batches and recordings of any size. It is compared
    with the model before it is written. `export.json` describes the files: what goes in, what comes out, sampling
    rate and calibration.
    """
    from ..files import check_folder

    check_folder(out)
    name = check_model(model)
    from ..export import export_onnx

    files = export_onnx(name, out, [part.value for part in parts or ()] or None, int8)
    if as_json:
        print_json({"model": name, "files": {part: str(path) for part, path in files.items()}})
        return
    with Table("part", "file", "MB") as table:
        for part, path in files.items():
            table.add(part, path, path.stat().st_size / 1e6)
