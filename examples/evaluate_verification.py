# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Evaluate speaker verification of held-out speakers in adverse conditions: noise, other talkers, short tests.

    python examples/evaluate_verification.py runs/pretrain mfcc --data examples/demo_speech
    python examples/evaluate_verification.py runs/pretrain resemblyzer --data "heldout/*.parquet" \\
        --noise_data "noise/*.parquet" --calibrate_on "dev/*.parquet" --cohort "train/*.parquet" --output_dir runs/eval
    python examples/evaluate_verification.py runs/pretrain --trials voxceleb1_test.txt --root voxceleb1/wav

With --output_dir it writes results.json, the scores of all trials as CSV, a DET plot and score histograms. Confidence
intervals are over speakers.
"""

import argparse
import shlex
import sys

from csc_hf.evaluation.command import add_options, check_options, run
from csc_hf.files import escape_unprintable


def main(argv: list[str] | None = None) -> None:
    escape_unprintable()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    args = parser.parse_args(argv)
    check_options(args, parser.error)
    run(args, shlex.join(["python", *(sys.argv if argv is None else [sys.argv[0], *argv])]))


if __name__ == "__main__":
    main()
