# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Prepare speech for training without labels: recordings of one talker each, long enough for crops that do not overlap.

    python benchmarks/label_free/prepare.py --labelled "$CORPUS/train/*.parquet" --one_session so762 --dev_only gsc \
        --unlabelled "$CORPUS/unlabelled/*.parquet" --noise "$CORPUS/noise/train*.parquet" --output_dir runs/label_free

Each folder below OUTPUT_DIR has Parquet files:

    recordings: recordings of which it is known that each holds one talker, and nothing else. The sentences of a
        session are joined (in the sources of --one_session, a speaker has a single session), and so are the readings
        of a synthetic voice; unlabelled rows are taken as they are.
    people: the other labelled speakers, the clips of each joined, which takes labels.
    labels-P: with --label_shares, clips of P % of the labelled speakers, as they are, with their speakers. The
        speakers of a smaller share are among those of a larger one.
    dev: the clips of speakers who are in neither, with all of the --dev_only sources.
    noise: the noise.

What is too short is left out and counted, and so is what has a licence that --leave_out names.

To train with labels as well, --keep_rows writes one folder `train` instead of `recordings` and `people`: each row as
it is, those of --unlabelled without a speaker, as FLAC, which is decoded faster than Opus. With --copies N, also a
folder `train-copies` with each file of `train` N times: each of N background processes then holds all of a small
corpus.
"""

import argparse
import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from datasets import Audio, Dataset, concatenate_datasets, load_dataset

from csc_hf.audio import SAMPLING_RATE, decode_audio
from csc_hf.files import escape_unprintable

COLUMNS = ["id", "audio", "speaker_id", "source", "licence", "seconds"]

HELP = f"Parquet files with {', '.join(COLUMNS)}; NAME=GLOB where they have no source, which is then NAME"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    for name in ("labelled", "unlabelled", "voices", "noise"):
        add(f"--{name}", nargs="*", default=[], metavar="GLOB", help=HELP)
    add("--output_dir", type=Path, required=True)
    add("--one_session", nargs="*", default=[], help="sources in which a speaker has one session")
    add("--dev_only", nargs="*", default=[], help="sources that are not trained on")
    add("--dev_share", type=float, default=0.12, help="share of the speakers of every other source")
    add("--label_shares", type=float, nargs="*", default=[], metavar="PERCENT", help="write `labels-PERCENT`")
    add("--keep_rows", action="store_true", help="write `train`: rows as they are")
    add("--copies", type=int, default=0, metavar="N", help="write `train-copies`, for N background processes")
    add("--min_seconds", type=float, default=8.0, help="shorter recordings are left out: four crops of 2 s")
    add("--max_seconds", type=float, default=90.0, help="a joined recording ends here")
    add("--leave_out", nargs="*", default=[], metavar="LICENCE", help="beginnings of licences")
    add("--num_shards", type=int, default=4)
    args = parser.parse_args(argv)
    if args.copies and not args.keep_rows:
        parser.error(f"--copies {args.copies} copies `train`, which --keep_rows writes: give that too")
    return args


def read(patterns: list[str], leave_out: list[str], counts: Counter[str]) -> Dataset | None:
    """All rows but those whose licence is left out; None without patterns."""
    parts = []
    for pattern in patterns:
        source, _, files = pattern.rpartition("=")
        part = load_dataset("parquet", data_files=files, split="train").cast_column("audio", Audio(decode=False))
        for column, value in (("source", source), ("licence", "")):
            if column not in part.column_names:
                part = part.add_column(column, [value] * len(part))
        parts.append(part.select_columns([column for column in COLUMNS if column in part.column_names]))
    if not parts:
        return None
    rows = concatenate_datasets(parts)
    allowed = rows.filter(lambda licence: not licence.startswith(tuple(leave_out)), input_columns="licence")
    counts["left out for their licence"] += len(rows) - len(allowed)
    return allowed


def rank(name: str) -> str:
    """Sorts names in an order in which the place of each does not depend on the others."""
    return hashlib.blake2b(name.encode()).hexdigest()


def choose_dev(rows: Dataset, share: float, dev_only: list[str]) -> set[str]:
    """The speakers of the dev set: `share` of those of each source, and all of some sources."""
    speakers_of: dict[str, set[str]] = defaultdict(set)
    for source, speaker in zip(rows["source"], rows["speaker_id"], strict=True):
        speakers_of[source].add(speaker)
    return {
        speaker
        for source, speakers in speakers_of.items()
        for speaker in sorted(speakers, key=rank)[: None if source in dev_only else round(share * len(speakers))]
    }


def share_of_speakers(rows: Dataset, percent: float) -> Iterator[dict[str, Any]]:
    """The rows of `percent` of the speakers."""
    speakers = sorted(set(rows["speaker_id"]), key=rank)
    chosen = set(speakers[: max(2, round(len(speakers) * percent / 100))])
    yield from rows.filter(lambda speaker: speaker in chosen, input_columns="speaker_id")


def encode(waveform: np.ndarray) -> bytes:
    """FLAC of a waveform (samples,)."""
    file = io.BytesIO()
    soundfile.write(file, waveform, SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def join(rows: Dataset, args: argparse.Namespace, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    """One recording of each speaker and source: the clips, in the order of a hash of their ids, one after another."""
    clips: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, (source, speaker) in enumerate(zip(rows["source"], rows["speaker_id"], strict=True)):
        clips[source, speaker].append(number)
    ids, seconds = rows["id"], rows["seconds"]
    for (source, speaker), numbers in sorted(clips.items()):
        if sum(seconds[number] for number in numbers) < args.min_seconds:
            counts[f"{source}: speakers with too little speech"] += 1
            continue
        parts: list[np.ndarray] = []
        length, licences = 0.0, set()
        for number in sorted(numbers, key=lambda number: rank(ids[number])):
            if length < args.max_seconds:
                parts.append(decode_audio(rows[number]["audio"]))
                licences.add(rows[number]["licence"])
                length += len(parts[-1]) / SAMPLING_RATE
        waveform = np.concatenate(parts)[: round(args.max_seconds * SAMPLING_RATE)]
        yield {
            "id": f"{source}/{speaker}",
            "audio": {"bytes": encode(waveform), "path": None},
            "speaker_id": speaker,
            "source": source,
            "licence": "; ".join(sorted(licences)),
            "seconds": len(waveform) / SAMPLING_RATE,
        }


def long_rows(rows: Dataset, args: argparse.Namespace, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    """Unlabelled rows that are long enough, as they are. The speaker is the row's own id."""
    for row in rows:
        if row["seconds"] < args.min_seconds:
            counts[f"{row['source']}: unlabelled rows that are too short"] += 1
        else:
            yield {column: row[column] for column in COLUMNS} | {"speaker_id": row["id"]}


def keep(rows: Dataset, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    """Rows as they are, as FLAC. What cannot be decoded is left out and counted."""
    for row in rows:
        try:
            audio = {"bytes": encode(decode_audio(row["audio"])), "path": None}
        except ValueError as error:
            counts[f"{row['source']}: rows left out: {error}"] += 1
            continue
        yield {column: row[column] for column in COLUMNS} | {"audio": audio}


def write(rows: Iterable[dict[str, Any]], folder: Path, num_shards: int, copies: int = 1) -> None:
    """Write Parquet files, with the rows in the order of a hash of their ids. Of several copies of a file, each has
    ids of its own, and every `copies`-th file, which is what one of so many processes reads, is of the same copy."""
    rows = sorted(rows, key=lambda row: rank(row["id"]))
    if not rows:
        return
    folder.mkdir(parents=True, exist_ok=True)
    dataset, num_shards = Dataset.from_list(rows), min(num_shards, len(rows))
    for part in range(num_shards * copies):
        number, copy = divmod(part, copies)
        shard = dataset.shard(num_shards, number)
        if copies > 1:
            ids = [f"copy {copy}/{id}" for id in shard["id"]]
            shard = shard.remove_columns("id").add_column("id", ids)
        shard.to_parquet(folder / f"part-{part:05d}-of-{num_shards * copies:05d}.parquet")
    hours: Counter[str] = Counter()
    for row in rows:
        hours[row["source"]] += row["seconds"] / 3600
    print(f"{folder}: {len(rows)} rows, {hours.total():.2f} h: " + ", ".join(f"{k} {v:.2f}" for k, v in hours.items()))


def main(argv: list[str] | None = None) -> None:
    escape_unprintable()
    args = parse_args(argv)
    counts: Counter[str] = Counter()
    recordings: list[dict[str, Any]] = []
    people: list[dict[str, Any]] = []
    kept: list[dict[str, Any]] = []
    dev: list[dict[str, Any]] = []
    labels: dict[str, list[dict[str, Any]]] = {}
    labelled = read(args.labelled, args.leave_out, counts)
    if labelled is not None:
        dev_speakers = choose_dev(labelled, args.dev_share, args.dev_only)
        train = labelled.filter(lambda speaker: speaker not in dev_speakers, input_columns="speaker_id")
        labels = {f"labels-{share:g}": list(share_of_speakers(train, share)) for share in args.label_shares}
        dev = list(labelled.filter(lambda speaker: speaker in dev_speakers, input_columns="speaker_id"))
        if args.keep_rows:
            kept += keep(train, counts)
        else:
            is_session = [source in args.one_session for source in train["source"]]
            recordings += join(train.select(np.flatnonzero(is_session)), args, counts)
            people += join(train.select(np.flatnonzero(np.logical_not(is_session))), args, counts)
    voices = read(args.voices, args.leave_out, counts)
    if voices is not None and args.keep_rows:
        kept += keep(voices, counts)
    elif voices is not None:
        recordings += join(voices, args, counts)
    unlabelled = read(args.unlabelled, args.leave_out, counts)
    if unlabelled is not None and args.keep_rows:
        kept += ({**row, "speaker_id": None} for row in keep(unlabelled, counts))
    elif unlabelled is not None:
        recordings += long_rows(unlabelled, args, counts)
    noise = read(args.noise, args.leave_out, counts)
    folders = {"recordings": recordings, "people": people, "train": kept, "dev": dev, "noise": noise or []}
    folders |= labels
    for name, rows in folders.items():
        write(rows, args.output_dir / name, args.num_shards)
    if args.copies:
        write(kept, args.output_dir / "train-copies", args.num_shards, args.copies)
    for what, count in counts.items():
        print(f"{count} {what}")


if __name__ == "__main__":
    main()
