# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""`csc-hf evaluate`."""

import shlex
import sys
from typing import Any

import typer

from .models import default_model, keep_transformers_quiet


def evaluate(context: typer.Context) -> None:
    """
    Measure speaker verification on labelled speech, in noise and among other talkers.

    ```
    csc-hf evaluate --data "held_out/*.parquet" --conditions clean mix0
    ```

    `csc-hf evaluate --help` lists its options.
    """
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> Any:
            raise ValueError(f"{message} (csc-hf evaluate --help)")

    arguments = context.args
    from ..evaluation.command import add_options, check_options, run

    parser = Parser(
        prog="csc-hf evaluate",
        description="Measure speaker verification on labelled speech: in noise, among other talkers, in short tests.",
        epilog="""\
examples:
  csc-hf evaluate --data "held_out/*.parquet" --conditions clean mix0
  csc-hf evaluate runs/pretrain resemblyzer mfcc --data speech/ --output_dir runs/evaluation
  csc-hf evaluate runs/pretrain --trials voxceleb1_test.txt --root voxceleb1/wav --json""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser, needs_model=False)
    args = parser.parse_args(arguments)
    args.models = args.models or [default_model()]
    check_options(args, parser.error)
    keep_transformers_quiet()
    run(args, shlex.join(["csc-hf", "evaluate", *arguments]), progress=sys.stderr.isatty())
