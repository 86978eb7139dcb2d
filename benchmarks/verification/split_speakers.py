# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Splits labelled speech in Parquet files into train and dev, no speaker in both; leaves out what may not be used.

    python benchmarks/verification/split_speakers.py "corpus/train/*.parquet" runs/split --leave_out GPL
    python benchmarks/verification/split_speakers.py "voices/*.parquet" runs/voices --source voices --licence CC0
"""

import argparse
import hashlib
from collections import defaultdict
from pathlib import Path

from datasets import Audio, load_dataset

NUM_SHARDS = 4


def dev_speakers(speakers_of: dict[str, set[str]], share: float) -> set[str]:
    """Of each source its `share` of the speakers, rounded: those whose names' hashes come first, so that a speaker's
    fate does not hang on who else is there."""

    def rank(speaker: str) -> str:
        return hashlib.blake2b(speaker.encode()).hexdigest()

    return {
        speaker
        for speakers in speakers_of.values()
        for speaker in sorted(speakers, key=rank)[: round(share * len(speakers))]
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("data", help="Parquet files, by a glob pattern, with the columns audio, speaker_id, seconds, source, licence")
    add("output_dir", type=Path, help="folder to be given train/ and dev/")
    add("--dev_share", type=float, default=0.12, help="share of the speakers of each source; 0 for noise")
    add("--source", help="of data without that column: what all of it is from")
    add("--licence", help="of data without that column: that of all of it")
    add("--leave_out", default=(), nargs="*", metavar="LICENCE", help="beginnings of licences")
    args = parser.parse_args(argv)

    rows = load_dataset("parquet", data_files=args.data, split="train").cast_column("audio", Audio(decode=False))
    for column, value in (("source", args.source), ("licence", args.licence)):
        if value is not None:
            rows = rows.add_column(column, [value] * len(rows))
    num_rows = len(rows)
    rows = rows.filter(lambda licence: not licence.startswith(tuple(args.leave_out)), input_columns="licence")
    print(f"{num_rows - len(rows)} of {num_rows} rows left out for their licence")
    dev: set[str] = set()
    if args.dev_share:
        speakers_of = defaultdict(set)
        for source, speaker in zip(rows["source"], rows["speaker_id"], strict=True):
            speakers_of[source].add(speaker)
        dev = dev_speakers(speakers_of, args.dev_share)
        print(f"dev: {len(dev)} of {sum(map(len, speakers_of.values()))} speakers: {' '.join(sorted(dev))}")
    parts = {"train": rows}
    if dev:
        parts = {
            "train": rows.filter(lambda speaker: speaker not in dev, input_columns="speaker_id"),
            "dev": rows.filter(lambda speaker: speaker in dev, input_columns="speaker_id"),
        }
    for name, part in parts.items():
        (args.output_dir / name).mkdir(parents=True, exist_ok=True)
        num_shards = min(NUM_SHARDS, len(part))
        for number in range(num_shards):
            file = args.output_dir / name / f"{name}-{number:05d}-of-{num_shards:05d}.parquet"
            part.shard(num_shards, number).to_parquet(file)
        print(f"{name}: {len(part)} rows, {sum(part['seconds']) / 3600:.2f} h, in {args.output_dir / name}")


if __name__ == "__main__":
    main()
