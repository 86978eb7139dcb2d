# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Fine-tunes CSC for diarization, who speaks when, with Accelerate.

    accelerate launch examples/finetune_diarization.py --model runs/pretrain                     # the demo voices
    accelerate launch examples/finetune_diarization.py --model runs/pretrain --train_data "train/*.parquet" \\
        --eval_data "heldout/*.parquet" --source_column_name source

Conversations with pauses and overlaps are generated from single-speaker utterances (`csc_hf.data.conversations`). For
each segment (every `config.segment_stride` samples) the model says who of its `num_labels` speakers is speaking. The
order of the speakers means nothing, so the loss is that of the best order (permutation-invariant training, as in EEND,
arXiv 1909.05952). The diarization error rate on speakers that were never heard is reported before and after.
"""

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import set_seed
from pyannote.core import Annotation, Segment
from pyannote.metrics.diarization import DiarizationErrorRate
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from csc_hf import CSCConfig, CSCForAudioFrameClassification
from csc_hf.audio import SAMPLING_RATE
from csc_hf.data.conversations import ConversationConfig, activity, draw_conversation, segment_labels
from csc_hf.files import escape_unprintable
from csc_hf.training.arguments import add_config_options, option
from csc_hf.training.distributed import create_accelerator
from csc_hf.training.finetuning import (
    SpeechArguments,
    SpeechReservoir,
    config_of_options,
    load_model,
    open_speech,
    parse_arguments,
    save,
    train,
)

DEMO = Path(__file__).resolve().parent / "demo_speech"


@dataclass
class Arguments(SpeechArguments):
    output_dir: str = option("runs/diarization", "folder for the model, its feature extractor and results.json")
    batch_size: int = option(8, "conversations, of each process")
    freeze_encoder: bool = option(False, "train the classifier alone")
    max_grad_norm: float = option(5.0, "gradients are scaled down to this norm")
    eval_conversations: int = option(100, "conversations of unheard speakers")


class Conversations(Dataset):
    """Conversations with labels at the model's rate.

    A conversation is drawn from the speech that is held when it is asked for; then `rows_per_conversation` rows more
    are read.
    """

    def __init__(
        self,
        speech: SpeechReservoir,
        config: ConversationConfig,
        model: CSCConfig,
        seed: int,
        length: int,
        rows_per_conversation: int = 0,
    ):
        self.speech = speech
        self.config = config
        self.model = model
        self.seed = seed
        self.length = length
        self.rows_per_conversation = rows_per_conversation

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        waveform, active = self.exact(number)
        self.speech.advance(self.rows_per_conversation)
        labels = segment_labels(active, self.model.segment_centres(len(waveform)))
        return {"input_values": waveform, "labels": labels}

    def exact(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The audio (samples,) of a conversation, and who speaks in each sample (speakers, samples)."""
        recipe = draw_conversation(self.speech.clips(), self.config, self.seed, number)
        return self.speech.mix(recipe), activity(recipe)


def permutation_invariant_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy in the best order of each conversation's speakers.

    Args:
        logits: (batch, segments, speakers).
        labels: (batch, segments, speakers), 1 where somebody speaks.
    """
    orders = itertools.permutations(range(labels.shape[-1]))
    losses = [
        F.binary_cross_entropy_with_logits(logits.float(), labels[..., order], reduction="none").mean((1, 2))
        for order in map(list, orders)
    ]
    return torch.stack(losses).amin(dim=0).mean()


def annotation(active: np.ndarray, rate: float, start: float = 0.0) -> Annotation:
    """Activity (speakers, frames), `rate` frames a second from `start` seconds on, as pyannote scores it."""
    result = Annotation()
    for speaker, row in enumerate(active):
        edges = np.flatnonzero(np.diff(np.pad(row.astype(int), 1)))
        for track, (first, behind) in enumerate(edges.reshape(-1, 2)):
            result[Segment(start + first / rate, start + behind / rate), f"{speaker}-{track}"] = speaker
    return result


@torch.inference_mode()
def diarize(model: CSCForAudioFrameClassification, waveform: torch.Tensor) -> Annotation:
    """Who speaks when in a recording (samples,). A segment stands for `segment_stride` samples about its centre."""
    active = model(waveform[None]).logits[0].T.cpu().numpy() > 0
    rate = SAMPLING_RATE / model.config.segment_stride
    first, end = model.config.segment_centres(len(waveform))[0] / SAMPLING_RATE, len(waveform) / SAMPLING_RATE
    return annotation(active, rate, start=first - 0.5 / rate).crop(Segment(0, end))


def diarization_errors(model: CSCForAudioFrameClassification, conversations: Conversations) -> dict[str, float]:
    """Diarization error rate over all conversations, without a collar and with overlaps; its three parts; and the
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


def compute_losses(model: torch.nn.Module, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss = permutation_invariant_loss(model(batch["input_values"]).logits, batch["labels"])
    return loss, {"loss": loss}


def main(argv: list[str] | None = None) -> None:
    escape_unprintable()

    def add_options(parser):
        add_config_options(parser.add_argument_group("conversations"), ConversationConfig)

    args, conversation = parse_arguments(Arguments, argv, __doc__, DEMO, add_options)
    config = config_of_options(ConversationConfig, args, "", **conversation)
    accelerator = create_accelerator(args.cpu_threads)
    set_seed(args.seed)
    # Which speaker has which label means nothing.
    labels = [f"LABEL_{number}" for number in range(config.num_speakers[1])]
    model = load_model(CSCForAudioFrameClassification, args.model, labels)
    if args.freeze_encoder:
        model.freeze_base_model()

    speech = open_speech(args)
    held = SpeechReservoir(speech.training, args, accelerator.process_index, accelerator.num_processes)
    number = args.max_steps * args.batch_size * accelerator.num_processes
    conversations = Conversations(held, config, model.config, args.seed, number, config.num_speakers[1])

    results = {"conversation": dataclasses.asdict(config), "num_processes": accelerator.num_processes}
    if accelerator.is_main_process:
        unheard_speech = SpeechReservoir(speech.held_out, args)
        unheard = Conversations(unheard_speech, config, model.config, args.seed, args.eval_conversations)
        results["before"] = diarization_errors(model.to(accelerator.device), unheard)
    loader = DataLoader(conversations, batch_size=args.batch_size)
    results |= train(accelerator, args, model, loader, compute_losses, args.max_grad_norm)
    if accelerator.is_main_process:
        results |= {"after": diarization_errors(model, unheard), "skipped": held.skipped}
        lines = [f"{len(speech.speakers)} training speakers, {len(speech.speaker_of)} utterances."]
        for moment in ("before", "after"):
            figures = (f"{name} {100 * value:.1f} %" for name, value in results[moment].items())
            lines.append(f"{moment}: {', '.join(figures)}")
        save(args, model, results, "\n".join(lines))
    accelerator.end_training()


if __name__ == "__main__":
    main()
