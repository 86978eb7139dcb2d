# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Fine-tunes CSC for speaker verification on labelled speech, with Transformers' Trainer: additive angular margin softmax
over the training speakers (ArcFace, arXiv 1801.07698). Speakers that it never heard are verified before and after.

    python examples/finetune_verification.py --model runs/pretrain                       # the demo voices
    python examples/finetune_verification.py --model runs/pretrain --train_data "train/*.parquet" \\
        --eval_data "heldout/*.parquet" --source_column_name source

What the model hears in training are crops with noise and, some of them, with a second talker (`csc_hf.data.mixing`). The
label is the louder one: `CSCForXVector` gives one embedding a recording, that of the slots as far as they are active,
so it learns to make the louder talker the active one. For everybody in a mixture, use `CSCModel` and its slots.
"""

import argparse
import json
import os
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, set_seed

from csc_hf import CSCConfig, CSCFeatureExtractor, CSCForXVector
from csc_hf.data.mixing import Clip, MixingConfig, draw_group, mix
from csc_hf.data.utterances import Utterance, stream_utterances
from csc_hf.evaluation.embedders import XVectorEmbedder
from csc_hf.evaluation.reports import format_report
from csc_hf.evaluation.trials import TrialSet, build_trials
from csc_hf.evaluation.verification import measure, score_trials
from csc_hf.training.cpu import keep_freed_memory

PRESETS = ("tiny", "small", "base")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the text above as it stands, and defaults."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--model", default="small", help="a saved model (folder or name on the Hub), or a new one: tiny, small, base")
    add(
        "--freeze_encoder",
        action="store_true",
        help="keep front end, shared trunk and slots; train the speaker branch, of which the embedding comes",
    )
    add(
        "--train_data",
        default=os.path.relpath(Path(__file__).resolve().parent / "demo_speech"),
        help="speech with speakers, held in memory (230 MB an hour): folder, Parquet or tar files, name on the Hub",
    )
    add("--eval_data", help="as --train_data, of other speakers; if not given, the split `test` of the training data")
    add("--audio_column_name", default="audio", help="column with the audio")
    add("--speaker_column_name", default="speaker_id", help="column with the speaker")
    add("--source_column_name", help="corpus or channel, for error rates within one")
    add("--id_column_name", default="id", help="column with an id that no other row has")
    add("--seconds", type=float, default=2.0, help="length of a training crop; shorter utterances are joined")
    add("--interferer_probability", type=float, default=0.25, help="of a second talker in a training crop")
    add(
        "--sir_db",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        default=(5.0, 20.0),
        help="level of the labelled talker over the second one",
    )
    add("--noise_probability", type=float, default=0.5, help="of noise in a training crop, at 0 to 25 dB")
    add("--max_steps", type=int, default=1000, help="training steps")
    add("--batch_size", type=int, default=32, help="crops, of each device")
    add("--learning_rate", type=float, default=1e-3, help="highest rate, of a cosine schedule")
    add("--warmup_steps", type=int, default=50, help="steps in which the rate rises")
    add("--logging_steps", type=int, default=50, help="steps that a logged loss is the mean of")
    add("--eval_seconds", type=float, default=4.0, help="length of the recordings that speakers are verified by")
    add("--eval_recordings", type=int, default=6, help="recordings a speaker")
    add("--seed", type=int, default=0, help="of weights, training data and evaluation")
    add("--output_dir", default="runs/verification", help="folder for model, feature extractor and results.json")
    args = parser.parse_args(argv)
    if args.eval_data is None and args.train_data.endswith((".parquet", ".tar")):
        parser.error("give --eval_data, of speakers that are not in the training data")
    return args


def load_utterances(args: argparse.Namespace, path: str, split: str) -> list[Utterance]:
    columns = args.audio_column_name, args.speaker_column_name, args.source_column_name, args.id_column_name
    return list(stream_utterances(path, split, *columns))


def load_model(name: str, num_speakers: int) -> CSCForXVector:
    """A saved encoder with a new classifier, or a new model."""
    if name in PRESETS:
        return CSCForXVector(getattr(CSCConfig, name)(num_labels=num_speakers))
    return CSCForXVector.from_pretrained(name, num_labels=num_speakers)


def freeze_encoder(model: CSCForXVector) -> None:
    """Let the speaker branch and the classifier learn. The classifier alone would leave the embedding as it is."""
    model.csc.requires_grad_(False)
    model.csc.speaker_branch.requires_grad_(True)


class SpeakerCrops(Dataset):
    """Crops of the training speakers and who (mainly) speaks in each: a function of (seed, number)."""

    def __init__(self, utterances: list[Utterance], mixing: MixingConfig, seed: int, length: int):
        self.clips = [Clip(u.id, len(u.waveform), u.speaker, u.source) for u in utterances]
        self.waveforms = {u.id: u.waveform for u in utterances}
        self.speakers = sorted({u.speaker for u in utterances})
        self.label_of = {u.id: self.speakers.index(u.speaker) for u in utterances}
        self.mixing = mixing
        self.seed = seed
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        # One recipe of a group, which pre-training would use as a whole: the first has a target like any other.
        recipe = draw_group(self.clips, self.mixing, self.seed, 0, number)[0]
        waveform, _, _ = mix(recipe, self.waveforms)
        return {
            "input_values": torch.from_numpy(waveform),
            "labels": torch.tensor(self.label_of[recipe.sources[0].pieces[0].utterance]),
        }


def verify(model: CSCForXVector, extractor: CSCFeatureExtractor, trials: TrialSet) -> dict:
    """Equal error rates of the head's embedding by condition. With two talkers at 0 dB there is no louder one: what
    one embedding a recording can do there is limited."""
    return measure(score_trials(XVectorEmbedder(model.eval(), extractor), trials))


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    keep_freed_memory()
    set_seed(args.seed)
    utterances = load_utterances(args, args.train_data, "train")
    held_out = load_utterances(args, args.eval_data or args.train_data, "test")
    if both := {u.speaker for u in utterances} & {u.speaker for u in held_out}:
        raise SystemExit(f"speakers {sorted(both)[:3]} are in the training data and in --eval_data: keep them apart")
    trials = build_trials(held_out, args.seed, args.eval_seconds, args.eval_recordings)

    mixing = MixingConfig(
        num_identities=5,  # the fewest that a group can be drawn from
        seconds=args.seconds,
        supervision="speaker",
        single_speaker_probability=1 - args.interferer_probability,
        sir_db=args.sir_db,
        noise_probability=args.noise_probability,
        same_source_probability=0.0,  # so that each speaker comes as often as any other
    )
    crops = SpeakerCrops(utterances, mixing, args.seed, args.max_steps * args.batch_size)
    model = load_model(args.model, len(crops.speakers))
    if args.freeze_encoder:
        freeze_encoder(model)
    extractor = CSCFeatureExtractor(min_samples=model.config.segment_samples)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=args.output_dir,
            max_steps=args.max_steps,
            per_device_train_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=args.warmup_steps,
            logging_steps=args.logging_steps,
            save_strategy="no",
            seed=args.seed,
            report_to="none",
        ),
        train_dataset=crops,
        processing_class=extractor,  # saved beside the model
    )
    results = {"settings": vars(args), "before": verify(model, extractor, trials)}
    trainer.train()
    results["loss"] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    results["after"] = verify(model, extractor, trials)
    trainer.save_model()
    Path(args.output_dir, "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"{len(crops.speakers)} training speakers, {len(utterances)} utterances. Saved in {args.output_dir}")
    for moment in ("before", "after"):
        print(f"{moment} fine-tuning: {format_report(results[moment])}")


if __name__ == "__main__":
    main()
