# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Small datasets of noise in place of speech, in the forms that users have."""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile


def encode(samples, rate=16000, format="FLAC") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format)
    return file.getvalue()


def make_rows(count, speakers=8, seed=0, source="studio", prefix="utt"):
    """Rows of 0.15 to 0.35 s."""
    rng = np.random.default_rng(seed)
    return [
        {
            "id": f"{prefix}-{number}",
            "audio": {"bytes": encode(rng.normal(0, 0.1, rng.integers(2400, 5600))), "path": f"{number}.flac"},
            "speaker_id": f"speaker-{number // 3 % speakers}",
            "source": source,
        }
        for number in range(count)
    ]


def write(folder, rows, shards=1):
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        table = pa.Table.from_pylist(rows[shard::shards])
        pq.write_table(table, folder / f"train-{shard:05}-of-{shards:05}.parquet", row_group_size=4)
    return folder


def make_mixed_rows():
    """60 usable rows of 8 speakers, about 15 s, and 6 that cannot be used."""
    rows = make_rows(60)
    bad = make_rows(6, prefix="bad")
    for row, samples in zip(bad, [None, np.zeros(4000), np.full(400, 0.1), None, None, None], strict=True):
        row["audio"]["bytes"] = b"not audio" if samples is None else encode(samples)
    for place, row in zip((3, 17, 31, 44, 50, 59), bad, strict=True):
        rows.insert(place, row)
    return rows


def write_tars(folder, rows, shards=1):
    """WebDataset files: `utt-7.flac` and `utt-7.json`, which holds the speaker."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as tar:
            for row in rows[shard::shards]:
                parts = {"flac": row["audio"]["bytes"], "json": json.dumps({"speaker": row["speaker_id"]}).encode()}
                for ending, content in parts.items():
                    member = tarfile.TarInfo(f"{row['id']}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder


def write_files(folder, rows):
    """Audio files, in a folder for each speaker."""
    for row in rows:
        path = folder / row["speaker_id"] / f"{row['id']}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(row["audio"]["bytes"])
    return folder
