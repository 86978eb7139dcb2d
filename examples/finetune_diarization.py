# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Fine-tunes CSC for diarization, who speaks when, with a training loop of its own on Accelerate.

    accelerate launch examples/finetune_diarization.py --model runs/pretrain                     # the demo voices
    accelerate launch examples/finetune_diarization.py --model runs/pretrain --train_data "train/*.parquet" \\
        --eval_data "heldout/*.parquet" --source_column_name source

Conversations with pauses and overlaps are generated from single-speaker utterances (`csc_hf.data.conversations`). For each
segment (every `config.segment_stride` samples) the model says who of its `num_labels` speakers is speaking. Which of
them has which number means nothing, so the loss is that of the best order (permutation-invariant training, as in EEND,
arXiv 1909.05952). Reported is the diarization error rate on speakers that were never heard, before and after.
"""

import argparse
import itertools
import json
import os
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from pyannote.core import Annotation, Segment
from pyannote.metrics.diarization import DiarizationErrorRate
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import get_scheduler

from csc_hf import CSCConfig, CSCFeatureExtractor, CSCForAudioFrameClassification
from csc_hf.audio import SAMPLING_RATE
from csc_hf.data.conversations import ConversationConfig, activity, draw_conversation, segment_labels
from csc_hf.data.mixing import Clip, mix
from csc_hf.data.utterances import Utterance, stream_utterances
from csc_hf.training.cpu import keep_freed_memory

PRESETS = ("tiny", "small", "base")
CONVERSATION = {
    "seconds": "length of a conversation",
    "num_speakers": "speakers of a conversation; the model gets a label for each of the higher number",
    "turn_seconds": "length of a turn, at most that of its utterance",
    "pause_seconds": "silence before a turn that does not overlap",
    "overlap_probability": "of a turn that begins before the one before it ends",
    "overlap_seconds": "by how much",
    "level_db": "level of the first speaker over another one",
    "noise_probability": "of noise in a conversation",
    "noise_snr_db": "level of the speech over the noise",
}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the text above as it stands, and defaults."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--model", default="small", help="a saved model (folder or name on the Hub), or a new one: tiny, small, base")
    add("--freeze_encoder", action="store_true", help="train the classifier alone, on the encoder as it is")
    add(
        "--train_data",
        default=os.path.relpath(Path(__file__).resolve().parent / "demo_speech"),
        help="speech with speakers, held in memory (230 MB an hour): folder, Parquet or tar files, name on the Hub",
    )
    add("--eval_data", help="as --train_data, of other speakers; if not given, the split `test` of the training data")
    add("--audio_column_name", default="audio", help="column with the audio")
    add("--speaker_column_name", default="speaker_id", help="column with the speaker")
    add("--source_column_name", help="corpus or channel: a conversation is then within one, where it can be")
    add("--id_column_name", default="id", help="column with an id that no other row has")
    add("--max_steps", type=int, default=1000, help="training steps")
    add("--batch_size", type=int, default=8, help="conversations, of each process")
    add("--learning_rate", type=float, default=1e-3, help="highest rate, of a cosine schedule")
    add("--warmup_steps", type=int, default=50, help="steps in which the rate rises")
    add("--max_grad_norm", type=float, default=5.0, help="gradients are clipped to this norm")
    add("--logging_steps", type=int, default=50, help="steps that a logged loss is the mean of")
    add("--eval_conversations", type=int, default=100, help="conversations of unheard speakers")
    add("--seed", type=int, default=0, help="of weights, training data and evaluation")
    add("--output_dir", default="runs/diarization", help="folder for model, feature extractor and results.json")

    conversations = parser.add_argument_group("conversations", "Two numbers are a range, in which is drawn uniformly.")
    for name, text in CONVERSATION.items():
        default = getattr(ConversationConfig, name)
        if isinstance(default, tuple):
            form = {"type": type(default[0]), "nargs": 2, "metavar": ("LOW", "HIGH")}
        else:
            form = {"type": float}
        conversations.add_argument(f"--{name}", **form, default=default, help=text)
    args = parser.parse_args(argv)
    if args.eval_data is None and args.train_data.endswith((".parquet", ".tar")):
        parser.error("give --eval_data, of speakers that are not in the training data")
    return args


def load_utterances(args: argparse.Namespace, path: str, split: str) -> list[Utterance]:
    columns = args.audio_column_name, args.speaker_column_name, args.source_column_name, args.id_column_name
    return list(stream_utterances(path, split, *columns))


def load_model(name: str, num_speakers: int) -> CSCForAudioFrameClassification:
    """A saved encoder with a new classifier, or a new model."""
    if name in PRESETS:
        return CSCForAudioFrameClassification(getattr(CSCConfig, name)(num_labels=num_speakers))
    return CSCForAudioFrameClassification.from_pretrained(name, num_labels=num_speakers)


class Conversations(Dataset):
    """Conversations, each a function of (seed, number), with labels at the model's rate."""

    def __init__(
        self, utterances: list[Utterance], config: ConversationConfig, model: CSCConfig, seed: int, length: int
    ):
        self.clips = [Clip(u.id, len(u.waveform), u.speaker, u.source) for u in utterances]
        self.waveforms = {u.id: u.waveform for u in utterances}
        self.config = config
        self.model = model
        self.seed = seed
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        waveform, active = self.exact(number)
        num_segments = self.model.num_segments(len(waveform))
        return {
            "input_values": waveform,
            "labels": segment_labels(active, num_segments, self.model.segment_stride),
        }

    def exact(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The audio (T,) of a conversation, and who speaks in each of its samples (C, T)."""
        recipe = draw_conversation(self.clips, self.config, self.seed, number)
        waveform, _, _ = mix(recipe, self.waveforms)
        return waveform, activity(recipe)


def permutation_invariant_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of logits (B, S, C) against labels (B, S, C) in the best order of each row's speakers."""
    orders = itertools.permutations(range(labels.shape[-1]))
    losses = [
        F.binary_cross_entropy_with_logits(logits.float(), labels[..., order], reduction="none").mean((1, 2))
        for order in map(list, orders)
    ]
    return torch.stack(losses).amin(dim=0).mean()


def annotation(active: np.ndarray, rate: float, start: float = 0.0) -> Annotation:
    """Activity (C, n), `rate` values a second from `start` seconds on, in the form that pyannote scores."""
    result = Annotation()
    for speaker, row in enumerate(active):
        edges = np.flatnonzero(np.diff(np.pad(row.astype(int), 1)))
        for track, (first, behind) in enumerate(edges.reshape(-1, 2)):
            result[Segment(start + first / rate, start + behind / rate), f"{speaker}-{track}"] = speaker
    return result


@torch.inference_mode()
def diarize(model: CSCForAudioFrameClassification, waveform: torch.Tensor) -> Annotation:
    """Who speaks when in one recording (T,): a segment stands for the `segment_stride` samples about its centre."""
    active = model(waveform[None]).logits[0].T.cpu().numpy() > 0
    rate = SAMPLING_RATE / model.config.segment_stride
    end = len(waveform) / SAMPLING_RATE
    return annotation(active, rate, start=-0.5 / rate).crop(Segment(0, end))


def diarization_errors(model: CSCForAudioFrameClassification, conversations: Conversations) -> dict[str, float]:
    """Diarization error rate over all the conversations, without a collar and with overlaps; its three parts; and the
    error rate of the answer that one speaker speaks all the time."""
    model.eval()
    error_rate, one_speaker = DiarizationErrorRate(), DiarizationErrorRate()
    for number in tqdm(range(len(conversations)), desc="diarization", unit="conversation"):
        waveform, active = conversations.exact(number)
        reference = annotation(active, SAMPLING_RATE)
        extent = Segment(0, len(waveform) / SAMPLING_RATE)
        error_rate(reference, diarize(model, torch.from_numpy(waveform).to(model.device)), uem=extent)
        one_speaker(reference, annotation(np.ones((1, len(waveform))), SAMPLING_RATE), uem=extent)
    parts = {name: error_rate[name] / error_rate["total"] for name in ("missed detection", "false alarm", "confusion")}
    return {"error_rate": abs(error_rate), **parts, "error_rate_of_one_speaker": abs(one_speaker)}


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    accelerator = Accelerator()
    keep_freed_memory()
    set_seed(args.seed)
    config = ConversationConfig(**{name: getattr(args, name) for name in CONVERSATION})
    model = load_model(args.model, config.num_speakers[1])
    if args.freeze_encoder:
        model.csc.requires_grad_(False)

    utterances = load_utterances(args, args.train_data, "train")
    held_out = load_utterances(args, args.eval_data or args.train_data, "test")
    if both := {u.speaker for u in utterances} & {u.speaker for u in held_out}:
        raise SystemExit(f"speakers {sorted(both)[:3]} are in the training data and in --eval_data: keep them apart")
    number = args.max_steps * args.batch_size * accelerator.num_processes
    conversations = Conversations(utterances, config, model.config, args.seed, number)
    unheard = Conversations(held_out, config, model.config, args.seed, args.eval_conversations)

    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=args.learning_rate)
    # Accelerate steps the schedule once for every process.
    steps = [count * accelerator.num_processes for count in (args.warmup_steps, args.max_steps)]
    scheduler = get_scheduler("cosine", optimizer, *steps)
    loader = DataLoader(conversations, batch_size=args.batch_size)
    model, optimizer, scheduler, loader = accelerator.prepare(model, optimizer, scheduler, loader)

    results = {"settings": vars(args), "loss": []}
    if accelerator.is_main_process:
        results["before"] = diarization_errors(accelerator.unwrap_model(model), unheard)
    model.train()
    recent = []
    progress = tqdm(loader, desc="training", disable=not accelerator.is_main_process)
    for step, batch in enumerate(progress, start=1):
        loss = permutation_invariant_loss(model(batch["input_values"]).logits, batch["labels"])
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(learning, args.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        recent.append(accelerator.reduce(loss.detach(), "mean").item())
        if step % args.logging_steps == 0:
            results["loss"].append(float(np.mean(recent)))
            recent.clear()
            progress.set_postfix(loss=f"{results['loss'][-1]:.3f}")

    if accelerator.is_main_process:
        trained = accelerator.unwrap_model(model)
        results["after"] = diarization_errors(trained, unheard)
        trained.save_pretrained(args.output_dir)
        CSCFeatureExtractor(min_samples=trained.config.segment_samples).save_pretrained(args.output_dir)
        Path(args.output_dir, "results.json").write_text(json.dumps(results, indent=2) + "\n")
        for moment in ("before", "after"):
            print(f"{moment}: " + ", ".join(f"{name} {100 * value:.1f} %" for name, value in results[moment].items()))
        print(f"Saved in {args.output_dir}")


if __name__ == "__main__":
    main()
