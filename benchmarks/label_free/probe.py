# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
What a linear classifier reads out of frozen models: who speaks, in clips that it has not heard of people that it has.

    python benchmarks/label_free/probe.py runs/untrained runs/label_free --data "dev/*.parquet"

Of each person's clips, every second one trains a logistic regression. It is read from MFCC statistics, and of each
model from the trunk, from the slot that speaks (both averaged over the recording) and from that slot's embedding.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from csc_hf import CSCForPreTraining
from csc_hf.audio import SAMPLING_RATE
from csc_hf.data.utterances import stream_utterances
from csc_hf.evaluation.embedders import load_embedder
from csc_hf.files import escape_unprintable

SECONDS = 4.0


def read_clips(data: str, num_people: int, num_clips: int) -> tuple[list[np.ndarray], list[str]]:
    """`num_clips` clips, float32 (samples,), of each of the first people who have as many."""
    clips: dict[str, list[np.ndarray]] = {}
    for utterance in stream_utterances(data, source_column=None):
        of_speaker = clips.setdefault(str(utterance.speaker), [])
        if len(of_speaker) < num_clips:
            of_speaker.append(utterance.waveform[: round(SECONDS * SAMPLING_RATE)])
    people = [speaker for speaker in sorted(clips) if len(clips[speaker]) == num_clips][:num_people]
    if not people:
        raise SystemExit(f"{data}: nobody has {num_clips} clips (--num_clips)")
    return [clip for speaker in people for clip in clips[speaker]], [name for name in people for _ in range(num_clips)]


@torch.inference_mode()
def read_out(model: CSCForPreTraining, clips: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The representations of clips, each (clips, features)."""
    found: dict[str, list[torch.Tensor]] = {"trunk": [], "slot": [], "embedding": []}
    for clip in clips:
        output = model.csc(torch.from_numpy(clip)[None])
        slot = output.source_activity[0].argmax()
        found["trunk"].append(output.last_hidden_state[0].mean(0))
        found["slot"].append(output.source_hidden_states[0, slot].mean(0))
        found["embedding"].append(output.source_embeddings[0, slot])
    return {name: torch.stack(vectors).numpy() for name, vectors in found.items()}


def probe(features: np.ndarray, speakers: list[str]) -> float:
    """Learn from every second clip who speaks. Returns the share of the other clips whose speaker is then found."""
    names = np.array(speakers)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    return classifier.fit(features[::2], names[::2]).score(features[1::2], names[1::2])


def main(argv: list[str] | None = None) -> None:
    escape_unprintable()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="saved models of pre-training")
    parser.add_argument("--data", required=True, help="speech with speakers, who are not trained on")
    parser.add_argument("--num_people", type=int, default=80)
    parser.add_argument("--num_clips", type=int, default=6, help="clips of a person, an even number")
    args = parser.parse_args(argv)
    clips, speakers = read_clips(args.data, args.num_people, args.num_clips)
    print(f"{len(set(speakers))} people, {len(clips)} clips of up to {SECONDS:g} s. Right, in %:\n")
    print("| model | read from | right |\n| --- | --- | --- |")
    print(f"| | MFCC statistics | {100 * probe(np.asarray(load_embedder('mfcc')(clips)), speakers):.1f} |")
    for path in args.models:
        model = CSCForPreTraining.from_pretrained(path).eval()
        for name, features in read_out(model, clips).items():
            print(f"| {Path(path).name} | {name} | {100 * probe(features, speakers):.1f} |")


if __name__ == "__main__":
    main()
