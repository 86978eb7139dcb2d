# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""`csc-hf diarize`."""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from .errors import fail
from .models import check_model, load_model
from .options import Channel, Files, Json, Model, Speakers, from_one
from .output import Table, check_targets, print_json
from .progress import Progress, for_each
from .recordings import STDIN, Recording, opened, output_names


def diarize(
    files: Files,
    rttm: Annotated[
        str | None, typer.Option("--rttm", metavar="FILE", help="Write RTTM to a file; - for standard output.")
    ] = None,
    audacity: Annotated[
        str | None,
        typer.Option("--audacity", metavar="FILE", help="Write a label track of Audacity; - for standard output."),
    ] = None,
    voices: Annotated[
        Path | None,
        typer.Option("--voices", metavar="DIR", help="Write the voice of each speaker to a WAV file in a folder."),
    ] = None,
    num_speakers: Annotated[
        int | None,
        typer.Option(
            "--num-speakers", "-n", metavar="N", callback=from_one, help="How many people speak, if it is known."
        ),
    ] = None,
    min_speakers: Annotated[
        int | None,
        typer.Option("--min-speakers", metavar="N", callback=from_one, help="The fewest people that may speak."),
    ] = None,
    max_speakers: Speakers = None,
    store: Annotated[
        Path | None,
        typer.Option("--store", "-s", metavar="FILE", help="Store of voices: known people get their names."),
    ] = None,
    channel: Channel = None,
    as_json: Json = False,
    model: Model = None,
) -> int:
    """
    Tell who speaks when, with any number of people.

    ```
    csc-hf diarize meeting.wav
    csc-hf diarize meeting.wav --rttm -
    csc-hf diarize meeting.wav --num-speakers 3 --voices voices/
    csc-hf diarize calls/ --store voices.safetensors --json
    ```

    The table has a line for each turn: its start and end in seconds, who speaks, and how sure that is. Turns of
    different people can overlap. People whose voices are in a store of `csc-hf enrol` get their names; others are
    `speaker_1`, `speaker_2`, … in order of appearance. How many there are is found out, unless it is given.

    `--json` prints an object for each recording with `turns`, `num_speakers`, `embeddings` and `duration`.
    `--voices` writes 32-bit floats, silent where a person does not speak; of several recordings, each has its own
    folder in DIR. RTTM has `_` for white space in names; what two people or recordings are then both called is an
    error.
    """
    if num_speakers is not None and (min_speakers or max_speakers) is not None:
        raise ValueError(f"--num-speakers {num_speakers} is exact: leave out --min-speakers and --max-speakers")
    if min_speakers is not None and max_speakers is not None and min_speakers > max_speakers:
        raise ValueError(f"--min-speakers {min_speakers} is above --max-speakers {max_speakers}")
    printed = [name for name, target in (("--rttm -", rttm), ("--audacity -", audacity)) if target == STDIN]
    printed += ["--json"] if as_json else []
    if len(printed) > 1:
        raise ValueError(f"{' and '.join(printed)} would all write to standard output: choose one")
    with opened(files, channel=channel) as (found,):
        if audacity is not None and len(found) > 1:
            raise ValueError(f"--audacity is for one recording, and there are {len(found)}: diarize them one by one")
        folders: dict[Recording, Path] = {}
        if voices is not None:
            folders = {found[0]: voices}
            if len(found) > 1:
                folders = {recording: voices / place for recording, place in output_names(found).items()}
        if rttm is not None:
            check_rttm(found)
        check_targets([Path(target) for target in (rttm, audacity) if target not in (None, STDIN)], found)
        if voices is not None:
            from ..files import check_folder

            check_folder(voices)
        name = check_model(model)
        from ..configuration_csc import CSCConfig
        from ..diarization import check_frame_activity, rttm_names, settings_of
        from ..diarization import diarize as find_turns
        from ..files import write_file
        from .store import load_voices

        check_frame_activity(CSCConfig.from_pretrained(name))
        known = None if store is None else load_voices(store)
        if known is not None and rttm is not None:
            rttm_names(known.voices)
        network = load_model(name)
        enrolled = {}
        if known is not None and store is not None:
            known.check_model(store, network, name)
            enrolled = known.embeddings
        settings = settings_of(network)
        step = (settings.chunk_seconds - settings.overlap_seconds) / (1 if voices is None else 2)
        lines: dict[str, list[str]] = {target: [] for target in (rttm, audacity) if target is not None}
        # For people, the name of the only recording says nothing.
        named = len(found) > 1 or not sys.stdout.isatty()
        columns = ["file"] * named + ["start", "end", "speaker", "score"]
        with contextlib.nullcontext() if printed else Table(*columns) as table:

            def work(recording: Recording) -> None:
                result = find_turns(
                    network,
                    recording.audio,
                    num_speakers=num_speakers,
                    min_speakers=min_speakers,
                    max_speakers=max_speakers,
                    enrolled=enrolled,
                    voices=folders.get(recording),
                )
                if rttm is not None:
                    give(rttm, result.rttm(recording.stem))
                if audacity is not None:
                    give(audacity, result.audacity())
                if not result.turns:
                    fail(f"warning: {recording.name!r}: nobody speaks there")
                if as_json:
                    print_json({"file": recording.name, **result.to_dict()})
                if table is not None:
                    for turn in result.turns:
                        table.add(*[recording.name] * named, turn.start, turn.end, turn.speaker, turn.score)

            def give(target: str, text: str) -> None:
                if target == STDIN:
                    print(text, end="", flush=True)
                else:
                    lines[target].append(text)

            status = for_each(Progress("diarizing", network, found, step), work)
        for target, texts in lines.items():
            if target != STDIN:
                write_file(target, "".join(texts))
    return status


def check_rttm(recordings: Sequence[Recording]) -> None:
    """Raise a ValueError if RTTM, which has neither folders nor spaces, cannot hold the name of a recording, or would
    give two of them the same."""
    from ..diarization import rttm_names

    names: dict[str, Recording] = {}
    for recording in recordings:
        (name,) = rttm_names([recording.stem]).values()
        if (other := names.setdefault(name, recording)) is not recording:
            raise ValueError(
                f"{other.name!r} and {recording.name!r} would both be {name!r} in RTTM: diarize them one by one"
            )
