# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""The command that evaluates speaker verification: its options, and a run. `examples/evaluate_verification.py` and
`csc-hf evaluate` are this."""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..configuration_csc import CSCConfig
from ..data.utterances import UtteranceStream, stream_utterances
from ..diarization import DiarizationSettings
from ..files import check_folder, write_file, writing
from .calibration import ENROLMENTS, Calibration
from .embedders import EMBEDDERS, load_embedder
from .plots import det_figure, histogram_figure
from .reports import format_comparison, format_report
from .scoring import Scores, score_trials, write_scores
from .trial_files import read_trials, write_trials
from .trial_set import BASIC_CONDITIONS, CONDITIONS, TrialSet
from .trials import build_trials, decode_usable
from .verification import calibrate, measure


def add_options(parser: argparse.ArgumentParser, needs_model: bool = True) -> None:
    """Declare the models and the options. Unless it `needs_model`, the models may be left out."""
    add = parser.add_argument
    add(
        "models",
        nargs="+" if needs_model else "*",
        metavar="MODEL",
        help=f"{', '.join(EMBEDDERS)}; or a saved model by its folder or its name on the Hub: a CSC model, any model "
        "with an x-vector head, a local folder of SpeechBrain's; or an exported CSC model by its file, such as "
        "separation.int8.onnx",
    )
    add("--data", help="labelled speech: folder, glob pattern of Parquet or tar files, or name on the Hub")
    add("--split", default="test", help="split of every data set here; files are one split, whatever its name")
    add("--audio_column_name", default="audio")
    add("--speaker_column_name", default="speaker_id")
    add("--source_column_name", help="corpus or channel, for error rates within one")
    add("--id_column_name", default="id", help="column with a unique id, or 'none': audio is then known by its hash")
    add("--trials", help="list of trials in VoxCeleb's or Kaldi's format, instead of --data")
    add("--root", help="folder that the list's paths are relative to")
    add(
        "--conditions",
        nargs="+",
        default=list(CONDITIONS),
        metavar="NAME",
        help=f"some of {', '.join(CONDITIONS)}; 'basic' is {', '.join(BASIC_CONDITIONS)}",
    )
    add("--seconds", type=float, default=4.0, help="length of a recording")
    add("--recordings", type=int, default=6, help="most recordings of a speaker")
    add("--max_speakers", type=int, help="most speakers")
    add("--seed", type=int, default=0)
    add("--noise_data", help="recorded noise, given as --data is; without it, noise is generated")
    add("--calibrate_on", help="speech of other speakers to learn calibrations on, given as --data is")
    add(
        "--store_calibration",
        metavar="NAME",
        help="condition whose calibration is stored in the config.json of each model, a CSC model in a local folder",
    )
    add("--cohort", help="speech of other speakers to normalise scores by (AS-norm), given as --data is")
    add("--top_k", type=int, default=100, help="closest speakers of the cohort, which normalise a score")
    add("--enrolment_recordings", type=int, default=1, help="recordings of one enrolment")
    add(
        "--enrolment",
        choices=ENROLMENTS,
        default="mean",
        help="compare a test with the mean embedding of an enrolment, by the trained cross-attention, or by the "
        "scorer of a CSCForSpeakerVerification",
    )
    add("--num_resamples", type=int, default=500, help="draws of the speakers for confidence intervals; 0: none")
    add("--batch_size", type=int, default=16)
    add("--cache_dir", help="folder that keeps embeddings for other runs")
    add("--output_dir", type=Path, help="folder for results.json, scores and plots")
    add("--write_trials", type=Path, help="folder to write lists of the trials and their audio to, for other tools")
    add("--json", action="store_true", help="print results.json instead of tables")


def check_options(args: argparse.Namespace, error: Callable[[str], object]) -> None:
    """Check that the options go together, else call `error` with a message; and fill in the names of conditions."""
    if (args.data is None) == (args.trials is None):
        error("give --data or --trials")
    if args.trials is not None and (args.root is None or args.calibrate_on is not None):
        error("--trials needs --root, and there is no calibration for its condition: leave out --calibrate_on")
    if args.conditions == ["basic"]:
        args.conditions = list(BASIC_CONDITIONS)
    if unknown := [name for name in args.conditions if name not in CONDITIONS]:
        error(f"--conditions {unknown[0]}: choose some of {', '.join(CONDITIONS)}, or basic")
    if args.store_calibration is not None:
        if args.calibrate_on is None or args.cohort is not None:
            error("--store_calibration needs --calibrate_on, and scores as they are, without --cohort")
        if args.store_calibration not in args.conditions:
            error(f"--store_calibration {args.store_calibration}: not among the conditions {args.conditions}")
        if others := [name for name in args.models if not (Path(name) / "config.json").is_file()]:
            error(f"--store_calibration is for models in folders, which {others[0]!r} is not: leave it out")
    if args.enrolment_recordings > 1:
        args.conditions = [name for name in args.conditions if CONDITIONS[name][0] == "clean"]


def open_speech(args: argparse.Namespace, data: str, labelled: bool = True) -> UtteranceStream:
    """
    Open a data set by the options that name its split and columns, "none" where there is no such column.

    Raises:
        ValueError: There is no such data, or it has no such column. The message names the data and the remedy.
    """
    labels = [args.speaker_column_name, args.source_column_name] if labelled else [None, None]
    columns = [None if name == "none" else name for name in (*labels, args.id_column_name)]
    try:
        return stream_utterances(data, args.split, args.audio_column_name, *columns)
    except OSError as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"{data}: no such files or folder, and no such data set can be had ({why})") from error
    except ValueError as error:
        raise ValueError(f"{data}: {error} (here --..._column_name, and none)") from error


def open_trials(args: argparse.Namespace, data: str, conditions: list[str], enrolment_recordings: int) -> TrialSet:
    """
    Build trials of a data set, and print what was left out.

    Raises:
        ValueError: No trials can be made. The message says what was left out, too.
    """
    left_out: dict[str, str] = {}
    speech, noise = open_speech(args, data).rows(), None
    if args.noise_data is not None:
        noise = decode_usable(open_speech(args, args.noise_data, labelled=False).rows(), left_out, needs_speaker=False)
    try:
        trials = build_trials(
            decode_usable(speech, left_out),
            args.seed,
            args.seconds,
            args.recordings,
            conditions,
            noise,
            args.max_speakers,
            enrolment_recordings,
        )
    except ValueError as error:
        raise ValueError("; ".join([f"{data}: {error}", *_left_out("recordings", _reasons(left_out))])) from error
    trials.audio_left_out.update(left_out)
    for line in (
        *_left_out("recordings", _reasons(trials.audio_left_out)),
        *_left_out("speakers with too little speech", trials.speakers_left_out),
    ):
        print(line, file=sys.stderr)
    return trials


def _reasons(left_out: dict[str, str]) -> list[str]:
    return [f"{name} ({why})" for name, why in left_out.items()]


def _left_out(what: str, names: Sequence[str]) -> list[str]:
    """A line that tells some of what was left out, if anything was."""
    return [f"{len(names)} {what} left out, such as {', '.join(names[:3])}"] if names else []


def commit() -> str | None:
    """Commit of this code, if it is in a clone."""
    git = ["git", "-C", str(Path(__file__).parent)]
    for command in (["ls-files", "--error-unmatch", Path(__file__).name], ["rev-parse", "HEAD"]):
        try:
            found = subprocess.run([*git, *command], capture_output=True, text=True)
        except FileNotFoundError:
            return None
        if found.returncode != 0:
            return None  # no clone, or that of another project, in which csc_hf is installed
    return found.stdout.strip()


def write_plots(folder: Path, scores: Scores) -> None:
    """Plot the conditions that have both target and other trials."""
    by_condition = {name: (values, scores.trials.conditions[name].is_target) for name, values in scores.scores.items()}
    both = {name: values for name, values in by_condition.items() if len(set(values[1].tolist())) == 2}
    if left_out := by_condition.keys() - both.keys():
        print(f"no plots of {', '.join(sorted(left_out))}: trials of one class only", file=sys.stderr)
    if both:
        for name, figure in (("det.png", det_figure(both)), ("scores.png", histogram_figure(both))):
            with writing(folder / name) as unfinished:
                figure.savefig(unfinished, dpi=150)


def store_in_config(learnt: Calibration | DiarizationSettings, folder: str) -> None:
    """Put what was learnt for a saved model into its config.json, and touch nothing else in its folder."""
    config = CSCConfig.from_pretrained(folder)
    learnt.store(config)
    # save_pretrained would copy code into the folder as well, over links to the very same files.
    with writing(Path(folder) / "config.json") as unfinished:
        config.to_json_file(unfinished)


def run(args: argparse.Namespace, command: str, progress: bool = True) -> None:
    """Evaluate, print, and write what the options ask for.

    Args:
        args: The options, checked.
        command: The command, as results.json keeps it.
        progress: Whether to show progress bars.
    """
    for folder in (args.output_dir, args.write_trials, args.cache_dir):
        if folder is not None:
            check_folder(folder)
    if args.trials is not None:
        trials = read_trials(args.trials, args.root)
    else:
        trials = open_trials(args, args.data, args.conditions, args.enrolment_recordings)
    development = cohort = None
    if args.calibrate_on is not None:
        development = open_trials(args, args.calibrate_on, args.conditions, args.enrolment_recordings)
    if args.cohort is not None:
        cohort = open_trials(args, args.cohort, ["clean"], 1)
    if args.write_trials is not None:
        write_trials(args.write_trials, trials)

    results = {}
    for name in args.models:
        embedder = load_embedder(name, args.batch_size)
        options = args.enrolment, cohort, args.top_k, args.cache_dir, progress
        calibrations: dict[str, Calibration] | None = None
        if development is not None:
            calibrations = calibrate(score_trials(embedder, development, *options))
            if args.store_calibration is not None:
                store_in_config(calibrations[args.store_calibration], name)
        scores = score_trials(embedder, trials, *options)
        results[name] = measure(scores, calibrations, args.num_resamples)
        if args.output_dir is not None:
            folder = check_folder(args.output_dir / name.strip("/").replace("/", "_"))
            write_scores(folder / "scores.csv", scores, calibrations)
            write_plots(folder, scores)
        if not args.json:
            print(f"{name}: {format_report(results[name])}\n", flush=True)
    report = {"command": command, "seed": args.seed, "commit": commit(), "results": results}
    if args.output_dir is not None:
        write_file(args.output_dir / "results.json", json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2) if args.json else format_comparison(results))
