# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Fine-tunes CSC to classify recordings (emotion, command, language, speaker, ...), with Transformers' Trainer.

    python examples/finetune_classification.py --model runs/pretrain --max_steps 300   # which demo voice is it?
    python examples/finetune_classification.py --model runs/pretrain --train_data user/name --label_column_name emotion

The data is any data set with a column of audio and one of labels. Accuracy is reported before and after, with that of
always saying the commonest label, and the mean over the labels of the share of each that is found (balanced accuracy).
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
from datasets import Audio, ClassLabel, Dataset, load_dataset
from transformers import Trainer, TrainingArguments, set_seed

from csc_hf import CSCConfig, CSCFeatureExtractor, CSCForSequenceClassification
from csc_hf.audio import SAMPLING_RATE, decode_audio
from csc_hf.training.cpu import keep_freed_memory

PRESETS = ("tiny", "small", "base")


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
        help="Parquet files (a glob pattern), or what `datasets.load_dataset` takes: folder, name on the Hub",
    )
    add("--train_split", default="train", help="split of --train_data")
    add("--eval_data", help="as --train_data; if not given, --eval_share of the training data")
    add("--eval_split", default="test", help="split of --eval_data")
    add("--eval_share", type=float, default=0.34, help="share of the training data that is held out, of each label")
    add("--audio_column_name", default="audio", help="column with the audio")
    add("--label_column_name", default="speaker_id", help="column with the label")
    add("--seconds", type=float, default=4.0, help="what is heard of longer recordings: a random part, or the first")
    add("--max_steps", type=int, default=1000, help="training steps")
    add("--batch_size", type=int, default=16, help="recordings, of each device")
    add("--learning_rate", type=float, default=1e-3, help="highest rate, of a cosine schedule")
    add("--warmup_steps", type=int, default=50, help="steps in which the rate rises")
    add("--logging_steps", type=int, default=50, help="steps that a logged loss is the mean of")
    add("--seed", type=int, default=0, help="of weights, training data and evaluation")
    add("--output_dir", default="runs/classification", help="folder for model, feature extractor and results.json")
    return parser.parse_args(argv)


def open_data(path: str, split: str, audio_column: str, label_column: str) -> tuple[Dataset, list[str]]:
    """The rows of a split, with their audio alone, not decoded, and the label of each."""
    options = {"path": path}
    if path.endswith(".parquet"):
        options = {"path": "parquet", "data_files": {split: path}}
    dataset = load_dataset(split=split, **options)
    for option, column in (("audio", audio_column), ("label", label_column)):
        if column not in dataset.column_names:
            raise SystemExit(f"--{option}_column_name {column}: the data has {dataset.column_names}, name one of them")
    feature, labels = dataset.features[label_column], dataset[label_column][:]
    labels = feature.int2str(labels) if isinstance(feature, ClassLabel) else [str(label) for label in labels]
    return dataset.select_columns(audio_column).cast_column(audio_column, Audio(decode=False)), labels


def load_data(args: argparse.Namespace) -> tuple[Dataset, Dataset]:
    """Rows to train on and to evaluate on, with numbers for labels in the column `labels`."""
    columns = args.audio_column_name, args.label_column_name
    train, labels = open_data(args.train_data, args.train_split, *columns)
    feature = ClassLabel(names=sorted(set(labels)))
    train = train.add_column("labels", feature.str2int(labels), feature=feature)
    if args.eval_data is None:
        parts = train.train_test_split(args.eval_share, seed=args.seed, stratify_by_column="labels")
        return parts["train"], parts["test"]
    held_out, labels = open_data(args.eval_data, args.eval_split, *columns)
    if unknown := sorted(set(labels) - set(feature.names)):
        raise SystemExit(f"--eval_data {args.eval_data}: no training data has the labels {unknown}, leave them out")
    return train, held_out.add_column("labels", feature.str2int(labels), feature=feature)


def load_model(name: str, labels: list[str]) -> CSCForSequenceClassification:
    """A saved encoder with a new classifier, or a new model."""
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    if name in PRESETS:
        return CSCForSequenceClassification(getattr(CSCConfig, name)(**names))
    return CSCForSequenceClassification.from_pretrained(name, **names)


def prepare(audio_column: str, seconds: float, at_random: bool):
    """What makes rows into examples, as they are asked for: a part of `seconds` of each recording."""
    length = round(seconds * SAMPLING_RATE)

    def transform(rows: dict[str, list]) -> dict[str, list]:
        waveforms = [decode_audio(audio) for audio in rows[audio_column]]
        starts = [torch.randint(max(len(w) - length, 0) + 1, ()).item() if at_random else 0 for w in waveforms]
        parts = [waveform[start : start + length] for waveform, start in zip(waveforms, starts, strict=True)]
        return {"waveform": parts, "labels": rows["labels"]}

    return transform


def accuracy(predictions) -> dict[str, float]:
    """Accuracy, and the mean over the labels that occur of the share of each that is found."""
    correct = predictions.predictions.argmax(axis=-1) == predictions.label_ids
    found = [correct[predictions.label_ids == label].mean() for label in np.unique(predictions.label_ids)]
    return {"accuracy": float(correct.mean()), "balanced_accuracy": float(np.mean(found))}


def evaluate(trainer: Trainer) -> dict[str, float]:
    """Loss and accuracies on the held-out recordings."""
    metrics = trainer.evaluate()
    return {name: metrics[f"eval_{name}"] for name in ("loss", "accuracy", "balanced_accuracy")}


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    keep_freed_memory()
    set_seed(args.seed)
    train, held_out = load_data(args)
    labels = train.features["labels"].names
    model = load_model(args.model, labels)
    if args.freeze_encoder:
        model.csc.requires_grad_(False)
    extractor = CSCFeatureExtractor(min_samples=model.config.segment_samples)

    def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
        waveforms = [example["waveform"] for example in examples]
        batch = extractor(waveforms, padding=True, sampling_rate=SAMPLING_RATE, return_tensors="pt")
        return {**batch, "labels": torch.tensor([example["labels"] for example in examples])}

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=args.output_dir,
            max_steps=args.max_steps,
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=args.warmup_steps,
            logging_steps=args.logging_steps,
            save_strategy="no",
            seed=args.seed,
            remove_unused_columns=False,  # the model does not know the columns that `collate` needs
            report_to="none",
        ),
        train_dataset=train.with_transform(prepare(args.audio_column_name, args.seconds, at_random=True)),
        eval_dataset=held_out.with_transform(prepare(args.audio_column_name, args.seconds, at_random=False)),
        data_collator=collate,
        processing_class=extractor,  # saved beside the model
        compute_metrics=accuracy,
    )
    targets = np.array(held_out["labels"])
    results = {
        "settings": vars(args),
        "labels": labels,
        "num_train": len(train),
        "num_held_out": len(held_out),
        "accuracy_of_commonest_label": float((targets == np.bincount(train["labels"]).argmax()).mean()),
        "before": evaluate(trainer),
    }
    trainer.train()
    results["loss"] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    results["after"] = evaluate(trainer)
    trainer.save_model()
    Path(args.output_dir, "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"{len(train)} recordings with {len(labels)} labels, {len(held_out)} held out. Saved in {args.output_dir}")
    print(f"commonest label: accuracy {results['accuracy_of_commonest_label']:.3f}")
    for moment in ("before", "after"):
        print(f"{moment}: " + ", ".join(f"{name} {value:.3f}" for name, value in results[moment].items()))


if __name__ == "__main__":
    main()
