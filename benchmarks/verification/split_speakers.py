# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Split labelled speech in Parquet files into train and dev, with no speaker in both; leave out licences.

    python benchmarks/verification/split_speakers.py "corpus/train/*.parquet" runs/split --leave_out GPL
    python benchmarks/verification/split_speakers.py "voices/*.parquet" runs/voices --source voices --licence CC0
"""

import argparse
import hashlib
from collections import defaultdict
from pathlib import Path

from datasets import Audio, load_dataset

from csc_hf.files import escape_unprintable

NUM_SHARDS = 4


def dev_speakers(speakers_of: dict[str, set[str]], share: float) -> set[str]:
    """The speakers of the dev set: of each source, `share` of its speakers, rounded.

    They are those whose names have the lowest hashes, so that the choice depends little on who else is there.
    """

    def rank(speaker: str) -> str:
        return hashlib.blake2b(speaker.encode()).hexdigest()

    return {
        speaker
        for speakers in speakers_of.values()
        for speaker in sorted(speakers, key=rank)[: round(share * len(speakers))]
    }


def main(argv: list[str] | None = None) -> None:
    escape_unprintable()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("data", help="glob pattern of Parquet files with the columns audio, speaker_id, seconds, source, licence")
    add("output_dir", type=Path, help="folder to write train/ and dev/ to")
    add("--dev_share", type=float, default=0.12, help="share of the speakers of each source; 0 for noise")
    add("--source", help="source of all data, where that column is missing")
    add("--licence", help="licence of all data, where that column is missing")
    add(
        "--leave_out",
        default=(),
        nargs="*",
        metavar="LICENCE",
        help="leave out rows whose licence begins with one of these",
    )
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
        speakers_of: dict[str, set[str]] = defaultdict(set)
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
