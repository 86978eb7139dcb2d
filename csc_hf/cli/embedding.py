# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""`csc-hf embed`."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .models import check_model
from .options import Channel, Files, Json, Model
from .output import Table, check_stdout, check_targets, print_json
from .progress import Progress, for_each
from .recordings import STDIN, Recording, opened


def embed(
    files: Files,
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write embeddings to a .safetensors file; - for standard output."),
    ] = None,
    channel: Channel = None,
    as_json: Json = False,
    model: Model = None,
) -> int:
    """
    Embed the voices of recordings.

    Each recording gives an embedding and an activity for each slot of the model. A slot holds one voice; one whose
    activity (a logit) is below zero holds nobody, and its embedding means nothing. Embeddings are unit vectors: their
    scalar product is a cosine.

    ```
    csc-hf embed calls/ --out calls.safetensors
    csc-hf embed anna.wav --json
    sox anna.wav -t wav - | csc-hf embed - --json
    ```

    The safetensors file holds `embeddings` (recordings, slots, size) and `activity` (recordings, slots), with the
    recordings' names as the JSON list `files` in its metadata. Without `--out` and `--json`, the activities are shown.
    """
    if out is not None:
        check_stdout(out)
    if out == STDIN and as_json:
        raise ValueError("--json and --out - would both write to standard output: choose one")
    with opened(files, channel=channel) as (found,):
        if out is not None and out != STDIN:
            check_targets([Path(out)], found)
        name = check_model(model)
        import safetensors.torch
        import torch

        from ..files import write_file
        from ..long_audio import embed as embed_audio
        from ..modeling_csc import CSCModel
        from .store import fingerprint

        encoder = CSCModel.from_pretrained(name).eval()
        done: list[str] = []
        values: list[Any] = []
        quiet = out is not None or as_json
        with contextlib.ExitStack() as stack:
            columns = [f"slot {slot + 1}" for slot in range(encoder.config.num_sources)]
            table = None if quiet else stack.enter_context(Table("file", *columns))

            def work(recording: Recording) -> None:
                audio = embed_audio(encoder, recording.audio)
                if out is not None:
                    done.append(recording.name)
                    values.append(audio)
                elif as_json:
                    found = {"embeddings": audio.embeddings.tolist(), "activity": audio.activity.tolist()}
                    print_json({"file": recording.name, **found})
                if table is not None:
                    table.add(recording.name, *audio.activity.tolist())

            status = for_each(Progress("embedding", encoder, found), work)
        if values and out is not None:
            tensors = {
                "embeddings": torch.stack([torch.from_numpy(audio.embeddings) for audio in values]),
                "activity": torch.stack([torch.from_numpy(audio.activity) for audio in values]),
            }
            metadata = {"files": json.dumps(done), "model": name, "fingerprint": fingerprint(encoder)}
            content = safetensors.torch.save(tensors, metadata)
            if out == STDIN:
                sys.stdout.buffer.write(content)
            else:
                write_file(out, content)
                if as_json:
                    print_json({"out": out, "files": done})
    return status
