# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""`csc-hf separate` and `extract`."""

import contextlib
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from .models import check_model, load_pipeline
from .options import Json, Model
from .output import Table, check_stdout, check_targets, print_json, yes_no
from .progress import Progress, for_each
from .recordings import STDIN, Recording, by_name, opened


def separate(
    files: Annotated[list[str], typer.Argument(metavar="MIX", help="Files, folders, glob patterns, or -.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to write to, made if needed.")],
    as_json: Json = False,
    model: Model = None,
) -> int:
    """
    Separate the voices of recordings into files, one for each slot of the model.

    ```
    csc-hf separate meeting.wav --out separated
    ```

    writes `separated/meeting-1.wav`, `separated/meeting-2.wav`, … as 32-bit floats at the sampling rate of the
    model. Recordings of any length take constant memory. Levels are those at which the files best add up to the
    recording; where a sample would clip, all of its files are turned down by one gain, which `--json` reports. A
    slot whose activity is below zero holds nobody.
    """
    with opened(files) as (found,):
        stems: dict[str, Recording] = {}
        for recording in found:
            if (other := stems.setdefault(recording.stem, recording)) is not recording:
                raise ValueError(
                    f"{other.name!r} and {recording.name!r} would be written to the same files: separate them into "
                    "different folders"
                )
        pipe = load_pipeline("speech-separation", check_model(model))
        from .files import separate_to_files

        out.mkdir(parents=True, exist_ok=True)
        slots = range(pipe.model.config.num_sources)
        targets = {recording: [out / f"{stem}-{slot + 1}.wav" for slot in slots] for stem, recording in stems.items()}
        check_targets([target for of_one in targets.values() for target in of_one], found)
        with contextlib.nullcontext() if as_json else Table("file", "slot", "activity", "speaks") as table:

            def work(recording: Recording) -> None:
                written = [str(target) for target in targets[recording]]
                audio, gain = separate_to_files(
                    pipe.model, recording.path, lambda _: list(enumerate(written)), out.resolve()
                )
                if table is None:
                    result = {"files": written, "activity": audio.activity.tolist(), "gain": gain}
                    print_json({"file": recording.name, **result})
                    return
                for slot, (target, activity) in enumerate(zip(written, audio.activity.tolist(), strict=True)):
                    table.add(target, slot + 1, activity, yes_no(activity > 0))

            return for_each(Progress("separating", pipe.model, found), work)


def extract(
    mix: Annotated[str, typer.Argument(metavar="MIX", help="Recording of several voices; - is standard input.")],
    target: Annotated[
        list[str],
        typer.Option("--enrol", "-e", metavar="TARGET", help="Recording of the voice to extract; repeatable."),
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="FILE", help="Audio file to write; - for standard output.")
    ],
    as_json: Json = False,
    model: Model = None,
) -> None:
    """
    Extract from a recording the voice that is most like an enrolled one.

    ```
    csc-hf extract meeting.wav --enrol anna.wav --out anna-only.wav
    cat meeting.flac | csc-hf extract - -e anna.wav -o - > anna-only.wav
    ```

    The score is the cosine of the two. A low one says that the voice is probably not there: what is written is the
    voice most like it all the same. Files are 32-bit floats where the format has them, take constant memory, and
    never clip.
    """
    with opened([mix], target) as (mixes, enrolments):
        if len(mixes) > 1:
            raise ValueError(f"MIX, {mix!r}, holds {len(mixes)} recordings: give one")
        if out == STDIN and as_json:
            raise ValueError("--json and --out - would both write to standard output: choose one")
        from .files import check_format, separate_to_files

        check_format(out)
        check_stdout(out)
        if out != STDIN:
            check_targets([Path(out)], [*mixes, *enrolments])
            if not Path(out).resolve().parent.is_dir():
                raise ValueError(f"no folder {str(Path(out).parent)!r} to write to: make it first")
        pipe = load_pipeline("speech-separation", check_model(model))
        from ..pipelines import closest_slot

        result: dict[str, Any] = {}

        def choose(audio: Any) -> list[tuple[int, str]]:
            best, score = closest_slot(audio, enrolment)
            result.update(score=score, activity=float(audio.activity[best]))
            return [(best, out)]

        folder = Path(tempfile.gettempdir()) if out == STDIN else Path(out).resolve().parent
        with by_name(mixes, enrolments), Progress("extracting", pipe.model, [*mixes, *enrolments]):
            enrolment = pipe._enrol(pipe._decode_enrolment([str(recording.path) for recording in enrolments]))
            _, gain = separate_to_files(pipe.model, mixes[0].path, choose, folder)
    if as_json:
        print_json({"file": mixes[0].name, "out": out, **result, "gain": gain})
    elif out != STDIN:
        print(f"{out}: score {result['score']:.2f}, activity {result['activity']:.2f}")
