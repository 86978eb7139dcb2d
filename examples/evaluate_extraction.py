# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Evaluate target speaker extraction on held-out people: with the enrolment of a talker of a mixture, of somebody else,
and in recordings in which the enrolled person is absent.

    python examples/evaluate_extraction.py model_cards/csc-small --data examples/demo_speech
    python examples/evaluate_extraction.py model_cards/csc-small --data "heldout/*.parquet" --latency 2 \\
        --output_dir runs/extraction

Each person is enrolled by one recording and extracted from others. What is measured: "two talkers" at 0 dB, one of
whom is the enrolled person; "two others", neither of whom is; "one other", who speaks alone. Where the person is, the
SI-SDR improvement counts. Where they are not, the output should be silent, which is to say 20 dB below the input.
Confidence intervals are over people.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from csc_hf import CSCForSpeechSeparation
from csc_hf.audio import power
from csc_hf.enrolment import enrol
from csc_hf.evaluation.command import open_speech
from csc_hf.evaluation.metrics import si_sdr
from csc_hf.evaluation.trial_set import TrialSet
from csc_hf.evaluation.trials import build_trials, decode_usable
from csc_hf.extraction import extract
from csc_hf.files import check_folder, escape_unprintable, write_file
from csc_hf.streaming import LiveExtractor, speaker_threshold

SILENT_DB = -20.0
"""Level of the output, relative to the input, below which it counts as silent."""


@dataclass(frozen=True)
class Outcome:
    """
    What came out of one recording.

    Args:
        condition: "two talkers", "two others" or "one other".
        person: Who was enrolled.
        score: Highest cosine with a slot.
        found: Whether it reached the threshold.
        improvement: SI-SDR of the output minus that of the input, in dB; None if the person is absent or not found.
        level: Power of the output over that of the input, in dB, at least -120.
        similarity: SI-SDR, in dB, of the live output to that of the file; None if either is silent.
    """

    condition: str
    person: str
    score: float
    found: bool
    improvement: float | None
    level: float
    similarity: float | None


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", help="folder of a CSC model or its name on the Hub")
    add("--data", required=True, help="labelled speech: folder, glob pattern of Parquet or tar files, or Hub name")
    add("--split", default="test", help="split of the data set; files are one split, whatever its name")
    add("--audio_column_name", default="audio")
    add("--speaker_column_name", default="speaker_id")
    add("--source_column_name", help="corpus or channel; the talkers of a mixture come from one where possible")
    add("--id_column_name", default="id", help="column with a unique id, or 'none': audio is then known by its hash")
    add("--seconds", type=float, default=5.0, help="length of a recording, that of the enrolment included")
    add("--max_speakers", type=int, help="most people")
    add("--threshold", type=float, help="lowest cosine that is accepted; by default, by the calibration")
    add("--latency", type=float, help="extract live, with so many seconds of latency, instead of from the whole file")
    add("--seed", type=int, default=0)
    add("--num_resamples", type=int, default=1000, help="draws of the people for intervals; 0: none")
    add("--output_dir", type=Path, help="folder for results.json")
    return parser.parse_args(argv)


def signals(
    trials: TrialSet, number: int, rng: np.random.Generator
) -> dict[str, tuple[int, np.ndarray, np.ndarray | None]]:
    """Of a recording, by condition: number of the enrolment, the signal (samples,), and the voice (samples,) in it."""
    speakers, sources = trials.speakers, np.array([str(recording.source) for recording in trials.recordings])
    talkers = trials.talkers[number, :2]
    own = np.flatnonzero((speakers == speakers[number]) & (np.arange(len(speakers)) != number))[0]
    others = np.flatnonzero(~np.isin(speakers, speakers[talkers]))
    of_source = others[sources[others] == sources[number]]
    other = rng.choice(of_source if len(of_source) else others)
    mixture, voices = trials.signal("mix0", number)
    return {
        "two talkers": (own, mixture, voices[0]),
        "two others": (other, mixture, None),
        "one other": (own, trials.recordings[talkers[1]].waveform, None),
    }


def measure(model, trials: TrialSet, threshold: float, latency: float | None, seed: int) -> list[Outcome]:
    rng = np.random.default_rng(seed)
    embeddings: dict[int, np.ndarray] = {}
    outcomes = []
    for number in range(len(trials.recordings)):
        for condition, (enrolled, signal, voice) in signals(trials, number, rng).items():
            if enrolled not in embeddings:
                embeddings[enrolled] = enrol(model, [trials.recordings[enrolled].waveform]).embedding
            whole = extract(model, signal, embeddings[enrolled], threshold=threshold)
            output, score, similarity = whole.source, whole.score, None
            if latency is not None:
                live = LiveExtractor(model, embeddings[enrolled], threshold=threshold, latency_seconds=latency)
                output, score = np.concatenate([live.push(signal), live.finish()]), live.best_score
                if output.any() and whole.source.any():
                    similarity = float(si_sdr(output, whole.source))
            improvement = None
            if voice is not None and output.any():
                improvement = float(si_sdr(output, voice) - si_sdr(signal, voice))
            outcomes.append(
                Outcome(
                    condition=condition,
                    person=str(trials.recordings[enrolled].speaker),
                    score=score,
                    found=score >= threshold,
                    improvement=improvement,
                    level=10 * np.log10(power(output) / power(signal) + 1e-12),
                    similarity=similarity,
                )
            )
    return outcomes


def summarise(outcomes: Sequence[Outcome], num_resamples: int) -> dict[str, dict]:
    """Figures of each condition: (value, low, high), with 95 % intervals over people, or the value alone."""

    def figure(values: dict[str, list[float]]) -> list[float] | None:
        """Mean over all values, those of each person."""
        if not any(values.values()):
            return None
        people = [values[person] for person in sorted(values) if values[person]]
        rng = np.random.default_rng(0)
        draws = [
            np.mean(np.concatenate([people[n] for n in rng.integers(len(people), size=len(people))]))
            for _ in range(num_resamples)
        ]
        interval = np.percentile(draws, [2.5, 97.5]).tolist() if draws else []
        return [float(np.mean(np.concatenate(people))), *interval]

    results = {}
    for condition in dict.fromkeys(outcome.condition for outcome in outcomes):
        of = [outcome for outcome in outcomes if outcome.condition == condition]

        def by_person(value) -> dict[str, list[float]]:
            values: dict[str, list[float]] = {outcome.person: [] for outcome in of}
            for outcome in of:
                if (number := value(outcome)) is not None:
                    values[outcome.person].append(float(number))
            return values

        results[condition] = {
            "recordings": len(of),
            "found": figure(by_person(lambda outcome: outcome.found)),
            "silent": figure(by_person(lambda outcome: outcome.level < SILENT_DB)),
            "improvement": figure(by_person(lambda outcome: outcome.improvement)),
            "median_similarity": float(np.median(close))
            if (close := [o.similarity for o in of if o.similarity is not None])
            else None,
        }
    return results


def format_report(results: dict[str, dict]) -> str:
    def cell(figure: list[float] | None, scale: float) -> str:
        if figure is None:
            return "-"
        interval = f" ({scale * figure[1]:.1f} to {scale * figure[2]:.1f})" if len(figure) > 1 else ""
        return f"{scale * figure[0]:.1f}{interval}"

    lines = [f"{'':14}{'recordings':>10}{'found %':>22}{'silent %':>22}{'SI-SDRi dB':>22}{'live to file dB':>18}"]
    for condition, of in results.items():
        cells = [cell(of["found"], 100), cell(of["silent"], 100), cell(of["improvement"], 1)]
        close = "-" if of["median_similarity"] is None else f"{of['median_similarity']:.1f}"
        lines.append(
            f"{condition:14}{of['recordings']:>10}" + "".join(f"{text:>22}" for text in cells) + f"{close:>18}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    escape_unprintable()
    args = parse_args(argv)
    if args.output_dir is not None:
        check_folder(args.output_dir)
    model = CSCForSpeechSeparation.from_pretrained(args.model).eval()
    left_out: dict[str, str] = {}
    rows = open_speech(args, args.data).rows()
    trials = build_trials(
        decode_usable(rows, left_out), args.seed, args.seconds, 2, ["mix0"], max_speakers=args.max_speakers
    )
    if left_out:
        print(f"left out {len(left_out)} recordings, such as {next(iter(left_out.items()))}", file=sys.stderr)
    threshold = speaker_threshold(model) if args.threshold is None else args.threshold
    begin = time.process_time()
    outcomes = measure(model, trials, threshold, args.latency, args.seed)
    results = summarise(outcomes, args.num_resamples)
    print(
        f"{len(set(trials.speakers))} people, {len(trials.recordings)} recordings of {args.seconds:g} s, seed "
        f"{args.seed}, trials {trials.sha256[:12]}, threshold {threshold:.3f}, {time.process_time() - begin:.0f} CPU s"
    )
    if args.output_dir is not None:
        everything = {
            "command": shlex.join(["python", *(sys.argv if argv is None else [sys.argv[0], *argv])]),
            "trials_sha256": trials.sha256,
            "threshold": threshold,
            "results": results,
            "outcomes": [asdict(outcome) for outcome in outcomes],
        }
        write_file(args.output_dir / "results.json", json.dumps(everything, indent=1) + "\n")
    print(format_report(results))


if __name__ == "__main__":
    main()
