# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Make train/ and test/ in this folder from the full synthetic corpus: as much of it as is small enough to ship.

python examples/demo_speech/make.py <folder of the full synthetic corpus>

The corpus is a folder with train/*.parquet and test/*.parquet, columns id, audio {bytes, path}, speaker_id, seconds.
The audio bytes are copied unchanged. All of test is taken, and three utterances each of as many training voices as
fit, those with the most utterances first.
"""

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from csc_hf.files import escape_unprintable

MAX_BYTES = 7_950_000  # of all Parquet files together
TRAIN_UTTERANCES_PER_VOICE = 3
TRAIN_SHARDS, TEST_SHARDS = 4, 2
ROWS_PER_GROUP = 22  # readers split a stream at row groups

# `datasets` finds this in the Parquet files and knows the audio column by it.
FEATURES = {
    "id": {"dtype": "string", "_type": "Value"},
    "audio": {"_type": "Audio"},
    "speaker_id": {"dtype": "string", "_type": "Value"},
    "seconds": {"dtype": "float64", "_type": "Value"},
}
AUDIO = pa.struct({"bytes": pa.binary(), "path": pa.string()})
SCHEMA = pa.schema(
    {"id": pa.string(), "audio": AUDIO, "speaker_id": pa.string(), "seconds": pa.float64()},
    metadata={"huggingface": json.dumps({"info": {"features": FEATURES}})},
)


def read_voices(folder: Path) -> dict[str, list[dict]]:
    """The rows of all Parquet files in `folder` by voice, ordered by id, the voices with the most rows first."""
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise ValueError(f"No *.parquet in {folder}: pass the folder that holds train/ and test/.")
    rows = [row for file in files for row in pq.read_table(file, columns=SCHEMA.names).to_pylist()]
    voices = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["id"]):
        voices[row["speaker_id"]].append(row)
    return dict(sorted(voices.items(), key=lambda item: -len(item[1])))


def check_disjoint(train: list[dict], test: list[dict]) -> None:
    """Raise ValueError if a voice or a recording is in both."""
    for what, key in (
        ("speaker_id", lambda row: row["speaker_id"]),
        ("id", lambda row: row["id"]),
        ("audio", lambda row: row["audio"]["bytes"]),
    ):
        shared = {key(row) for row in train} & {key(row) for row in test}
        if shared:
            names = sorted({row["id"] for row in train + test if key(row) in shared})
            raise ValueError(f"train and test share a {what}: rows {names}; take them out of one of the two.")


def to_shards(rows: list[dict], count: int) -> list[bytes]:
    """Write `rows` as `count` Parquet files, shuffled, so that every part of a file holds many voices."""
    rows = random.Random(0).sample(rows, len(rows))
    shards = []
    for index in range(count):
        buffer = pa.BufferOutputStream()
        table = pa.Table.from_pylist(rows[index::count], schema=SCHEMA)
        # Every OGG file begins with the same code books, a tenth of all bytes, which compress well.
        pq.write_table(table, buffer, row_group_size=ROWS_PER_GROUP, compression="zstd", compression_level=12)
        shards.append(buffer.getvalue().to_pybytes())
    return shards


def size(shards: list[bytes]) -> int:
    return sum(map(len, shards))


def write(split: str, shards: list[bytes], rows: list[dict]) -> None:
    folder = Path(__file__).parent / split
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.parquet"):
        old.unlink()
    for index, shard in enumerate(shards):
        (folder / f"{split}-{index:05d}-of-{len(shards):05d}.parquet").write_bytes(shard)
    voices = len({row["speaker_id"] for row in rows})
    minutes = sum(row["seconds"] for row in rows) / 60
    print(f"{split}: {voices} voices, {len(rows)} utterances, {minutes:.1f} minutes, {size(shards):,} bytes")


def main() -> None:
    escape_unprintable()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path, help="folder of the full synthetic corpus, with train/ and test/ in it")
    corpus = parser.parse_args().corpus

    test_rows = [row for rows in read_voices(corpus / "test").values() for row in rows]
    test_shards = to_shards(test_rows, TEST_SHARDS)

    train_rows, train_shards = [], []
    for rows in read_voices(corpus / "train").values():
        more_rows = train_rows + rows[:TRAIN_UTTERANCES_PER_VOICE]
        more_shards = to_shards(more_rows, TRAIN_SHARDS)
        if len(rows) < TRAIN_UTTERANCES_PER_VOICE or size(more_shards) + size(test_shards) > MAX_BYTES:
            break
        train_rows, train_shards = more_rows, more_shards

    check_disjoint(train_rows, test_rows)
    write("train", train_shards, train_rows)
    write("test", test_shards, test_rows)


if __name__ == "__main__":
    main()
