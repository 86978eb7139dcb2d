# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""`csc-hf separate` and `extract`."""

import contextlib
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from .errors import DIFFERENT, SAME
from .models import check_comparison, check_model, load_pipeline
from .options import Channel, Condition, Json, Model, Threshold
from .output import Table, check_stdout, check_targets, print_json, yes_no
from .progress import Progress, for_each
from .recordings import STDIN, Recording, by_name, opened, output_names


def separate(
    files: Annotated[list[str], typer.Argument(metavar="MIX", help="Files, folders, glob patterns, or -.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to write to, made if needed.")],
    channel: Channel = None,
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
    slot whose activity is below zero holds nobody. Recordings of one name in several folders get folders in DIR.

    A slot is a place for a voice, not a person: people who talk in turn, without overlap, can share a slot. For one
    file per person, whatever the overlap, take `csc-hf diarize --voices`.
    """
    with opened(files, channel=channel) as (found,):
        names = output_names(found)
        from ..files import check_folder

        check_folder(out)
        network = load_pipeline("speech-separation", check_model(model)).model
        from ..long_audio import separate as separate_audio
        from .files import write_voices

        slots = range(network.config.num_sources)
        targets = {
            recording: [out / name.parent / f"{name.name}-{slot + 1}.wav" for slot in slots]
            for recording, name in names.items()
        }
        for of_one in targets.values():
            of_one[0].parent.mkdir(parents=True, exist_ok=True)
        check_targets([target for of_one in targets.values() for target in of_one], found)
        with contextlib.nullcontext() if as_json else Table("file", "slot", "activity", "speaks") as table:

            def work(recording: Recording) -> None:
                written = [str(target) for target in targets[recording]]
                audio, gain = write_voices(
                    lambda parts: separate_audio(network, recording.audio, output_files=parts), written, out.resolve()
                )
                if table is None:
                    result = {"files": written, "activity": audio.activity.tolist(), "gain": gain}
                    print_json({"file": recording.name, **result})
                    return
                for slot, (target, activity) in enumerate(zip(written, audio.activity.tolist(), strict=True)):
                    table.add(target, slot + 1, activity, yes_no(activity > 0))

            return for_each(Progress("separating", network, found), work)


def extract(
    mix: Annotated[str, typer.Argument(metavar="MIX", help="Recording of several voices; - is standard input.")],
    target: Annotated[
        list[str],
        typer.Option("--enrol", "-e", metavar="TARGET", help="Recording of the voice to extract; repeatable."),
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="FILE", help="Audio file to write; - for standard output.")
    ],
    threshold: Threshold = None,
    condition: Condition = None,
    channel: Channel = None,
    as_json: Json = False,
    model: Model = None,
) -> int:
    """
    Extract the voice of one person from a recording; where they do not speak, there is silence.

    ```
    csc-hf extract meeting.wav --enrol anna.wav --out anna-only.wav
    cat meeting.flac | csc-hf extract - -e anna.wav -o - > anna-only.wav
    ```

    The score is the highest cosine of the enrolled voice with one in the recording. Files are as long as the
    recording, 32-bit floats where the format has them, take constant memory, and never clip.

    Exit status: 0 extracted, 1 the voice is not in the recording and the file is silent, 2 an error.
    """
    with opened([mix], target, channel=channel) as (mixes, enrolments):
        if len(mixes) > 1:
            raise ValueError(f"MIX, {mix!r}, holds {len(mixes)} recordings: give one")
        if out == STDIN and as_json:
            raise ValueError("--json and --out - would both write to standard output: choose one")
        from .files import check_format, write_voices

        check_format(out)
        check_stdout(out)
        if out != STDIN:
            check_targets([Path(out)], [*mixes, *enrolments])
        name = check_model(model)
        check_comparison(name, "mean", threshold, condition)
        pipe = load_pipeline("target-speaker-extraction", name)
        from ..extraction import LATENCY_SECONDS
        from ..extraction import extract as extract_voice
        from ..streaming import speaker_threshold

        lowest = threshold if threshold is not None else speaker_threshold(pipe.model, condition)
        folder = Path(tempfile.gettempdir()) if out == STDIN else Path(out).resolve().parent
        with Progress("extracting", pipe.model, [*mixes, *enrolments], LATENCY_SECONDS / 2):
            with by_name(enrolments):
                pipe.enrol([recording.audio for recording in enrolments])
            with by_name(mixes):
                voice, gain = write_voices(
                    lambda parts: extract_voice(
                        pipe.model, mixes[0].audio, pipe.enrolled.embedding, threshold=lowest, output_file=parts[0]
                    ),
                    [out],
                    folder,
                )
    if as_json:
        found = {"present": voice.present, "score": voice.score, "threshold": lowest}
        print_json({"file": mixes[0].name, "out": out, **found, "gain": gain})
    elif out != STDIN:
        verdict = "extracted" if voice.present else "not in the recording, the file is silent"
        score = "a silent recording" if voice.score is None else f"score {voice.score:.2f}"
        print(f"{out}: {verdict}: {score}, threshold {lowest:.2f}")
    return SAME if voice.present else DIFFERENT
