# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""`csc-hf verify`, `enrol` and `identify`."""

import contextlib
import math
from typing import Annotated

import typer

from .errors import DIFFERENT, SAME, UNDECIDED
from .models import check_comparison, check_model, load_pipeline
from .options import FLAG, KIND_HELP, Channel, Condition, Files, Json, Kind, Model, Store, Threshold
from .output import Table, counted, print_json, yes_no
from .progress import Progress, for_each
from .recordings import Recording, by_name, opened


def verify(
    enrolment: Annotated[str, typer.Argument(metavar="A", help="Recording of a voice; several: a folder or pattern.")],
    test: Annotated[str, typer.Argument(metavar="B", help="Recording in which the voice may speak; - is stdin.")],
    kind: Annotated[Kind | None, typer.Option("--enrolment", help=KIND_HELP)] = None,
    threshold: Threshold = None,
    condition: Condition = None,
    channel: Channel = None,
    as_json: Json = False,
    model: Model = None,
) -> int:
    """
    Tell whether the voice of A speaks in B, even if others speak too.

    ```
    csc-hf verify anna.wav meeting.wav
    csc-hf verify anna/ meeting.wav --enrolment attention --json
    csc-hf verify anna.wav call.wav && echo "It is Anna."
    ```

    The score is a cosine (of a scorer, a logit), the llr a log-likelihood ratio (natural logarithm) by the
    calibration of the model, for clean recordings where one voice is heard on either side, and else for talkers at
    once. The probability is that of the same person if both answers were equally likely beforehand. A decision is a
    guess, for conditions like those of its calibration. `--json` prints one object with `score`, `llr`, `decision`,
    `threshold`, `condition`, `silent` and `several_speakers`.

    Exit status: 0 same voice, 1 different voices, 2 an error, 3 nothing decided: a recording is silent, or there
    is neither calibration nor threshold.
    """
    with opened([enrolment], [test], channel=channel) as (enrolled, tests):
        if len(tests) > 1:
            raise ValueError(f"B, {test!r}, holds {len(tests)} recordings: give one")
        name = check_model(model)
        check_comparison(name, kind and kind.value, threshold, condition)
        pipe = load_pipeline(
            "speaker-verification",
            name,
            enrolment=kind and kind.value,
            threshold=threshold,
            condition=condition,
        )
        with by_name(enrolled, tests), Progress("verifying", pipe.model, [*enrolled, *tests]):
            result = pipe([recording.audio for recording in enrolled], tests[0].audio)
    decision = result["decision"]
    if as_json:
        print_json(result)
    else:
        verdict = {True: "probably the same person", False: "probably different people", None: "undecided"}[decision]
        details = [f"score {result['score']:.2f}"]
        if result["llr"] is not None:
            details.append(f"llr {result['llr']:.1f} (probability {probability(result['llr']):.2f} at even odds)")
        if result["threshold"] is not None:
            details.append(f"threshold {result['threshold']:.2f}")
        if result["condition"] is not None:
            details.append(f"condition {result['condition']}")
        if result["silent"]:
            details.append("a recording is silent")
        if result["several_speakers"]:
            details.append(f"several voices in {tests[0].name}")
        print(f"{verdict}: {', '.join(details)}")
    return {True: SAME, False: DIFFERENT, None: UNDECIDED}[decision]


def probability(llr: float) -> float:
    """Of the same person, if that was as likely as not before anything was heard."""
    return 1 / (1 + math.exp(-llr)) if llr > 0 else math.exp(llr) / (1 + math.exp(llr))


def enrol(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the voice.")],
    files: Files,
    store: Store,
    kind: Annotated[
        Kind | None, typer.Option("--enrolment", help=f"{KIND_HELP} A store has one kind: mean, if it is new.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", metavar=FLAG, help="Replace a voice of that name.")] = False,
    channel: Channel = None,
    as_json: Json = False,
    model: Model = None,
) -> None:
    """
    Enrol a voice: keep it in a store, by name.

    ```
    csc-hf enrol Anna anna1.wav anna2.wav --store voices.safetensors
    csc-hf enrol Ben recordings/ben/ --store voices.safetensors
    ```

    In each recording, the main voice is the one to enrol. The store is made if there is none. It belongs to the
    model that it was made with. Names are unique: `--replace` replaces a voice. Voices are biometric data: have
    people's consent.
    """
    from ..files import check_target

    check_target(store)
    with opened(files, channel=channel) as (found,):
        model_name = check_model(model)
        from ..enrolment import check_name
        from .store import VoiceStore, fingerprint

        check_name(name)
        voices = VoiceStore.load(store) if store.exists() else None
        if voices is not None and name in voices.voices and not replace:
            raise ValueError(f"{name!r} is in {str(store)!r} already: choose another name, or --replace")
        if voices is not None and kind is not None and kind.value != voices.enrolment:
            raise ValueError(
                f"{str(store)!r} holds voices of --enrolment {voices.enrolment}, not {kind.value}: leave the option "
                "out, or choose another store"
            )
        enrolment = voices.enrolment if voices is not None else (kind or Kind.mean).value
        check_comparison(model_name, enrolment, 1.0, None)
        # Nothing is decided here, so a threshold keeps the pipeline from asking for a calibration.
        pipe = load_pipeline("speaker-verification", model_name, enrolment=enrolment, threshold=1.0)
        if voices is None:
            voices = VoiceStore(
                model_name, fingerprint(pipe.model, enrolment), enrolment, pipe.model.config.sampling_rate
            )
        voices.check_model(store, pipe.model, model_name)
        recordings = [recording.audio for recording in found]
        with by_name(found), Progress("enrolling", pipe.model, found):
            pipe.enrol(name, recordings)
        voices.add(name, pipe.enrolled[name], len(found))
        voices.save(store)
    if as_json:
        print_json({"name": name, "recordings": len(found), "store": str(store), "voices": list(voices.voices)})
    else:
        print(f"enrolled {name} ({counted(found, 'recording')}): {store} holds {counted(voices.voices, 'voice')}")


def identify(
    files: Files,
    store: Store,
    threshold: Threshold = None,
    condition: Condition = None,
    channel: Channel = None,
    as_json: Json = False,
    model: Model = None,
) -> int:
    """
    Tell which enrolled voices speak in recordings.

    ```
    csc-hf identify meeting.wav --store voices.safetensors
    csc-hf identify "calls/**/*.wav" --store voices.safetensors --json
    ```

    Each recording is compared with all voices of the store. The table has a line for each voice, best first;
    `--json` prints an object for each recording with the list `voices`, whose entries have `speaker`, `score`,
    `llr` and `decision` as in `verify`.
    """
    with opened(files, channel=channel) as (found,):
        if not store.is_file():
            raise ValueError(f"no store {str(store)!r}: make one with csc-hf enrol")
        name = check_model(model)
        from .store import VoiceStore

        voices = VoiceStore.load(store)
        check_comparison(name, voices.enrolment, threshold, condition)
        pipe = load_pipeline(
            "speaker-verification", name, enrolment=voices.enrolment, threshold=threshold, condition=condition
        )
        voices.check_model(store, pipe.model, name)
        pipe.enrolled = voices.voices
        with contextlib.nullcontext() if as_json else Table("file", "voice", "score", "llr", "speaks") as table:

            def work(recording: Recording) -> None:
                result = pipe(recording.audio)
                if table is None:
                    print_json({"file": recording.name, "voices": result})
                    return
                for voice in result:
                    row = voice["speaker"], voice["score"], voice["llr"], yes_no(voice["decision"])
                    table.add(recording.name, *row)

            return for_each(Progress("identifying", pipe.model, found), work)
