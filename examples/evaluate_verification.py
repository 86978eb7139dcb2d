# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Verifies held-out speakers with saved models: clean, in two-talker mixtures at 0 dB, and mixture against mixture.

    python examples/evaluate_verification.py runs/pretrain/checkpoint-* --data examples/demo_speech

Pre-training does the same before and after, and every `--eval_steps`.
"""

import argparse
import json
from pathlib import Path

import torch

from csc_hf import CSCForSpeechSeparation
from csc_hf.data import stream_utterances
from csc_hf.verification import build_trials, evaluate, format_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="folders of saved models, or names on the Hub")
    parser.add_argument("--data", required=True, help="folder, Parquet file or glob pattern of labelled speech")
    parser.add_argument("--split", default="test")
    parser.add_argument("--source_column_name", help="corpus or channel, for error rates within one")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a recording")
    parser.add_argument("--recordings", type=int, default=6, help="recordings a speaker")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args()

    utterances = stream_utterances(args.data, split=args.split, source_column=args.source_column_name)
    trials = build_trials(utterances, args.seed, args.seconds, args.recordings)
    results = {}
    for name in args.models:
        model = CSCForSpeechSeparation.from_pretrained(name)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        results[name] = evaluate(model, trials, args.batch_size)
        print(f"{name}\n{format_report(results[name])}\n", flush=True)
    if args.output:
        args.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
