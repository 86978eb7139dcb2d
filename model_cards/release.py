# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Makes the folder of a released model, laid out like its Hub repository, from what training and evaluation wrote.

    python model_cards/release.py csc-small --model runs/csc-small --settings examples/configs/csc-small.yaml \\
        --training runs/csc-small-pretrained runs/csc-small --evaluation mean=runs/mean/results.json ...
    python model_cards/release.py csc-small    # only the card again, from the folder's own files

The card is `model_cards/NAME.md`, a Jinja template, filled in with the folder's `results.json`. The code beside the
weights is linked to `csc_hf/`; uploading the folder follows the links.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

import csc_hf
from csc_hf import CSCConfig, CSCFeatureExtractor
from csc_hf.files import escape_unprintable

CARDS = Path(__file__).resolve().parent
CODE = ("configuration_csc.py", "feature_extraction_csc.py", "modeling_csc.py")


def card_data(name: str, results: dict) -> ModelCardData:
    """The metadata that the Hub shows: a figure for each condition of the first evaluation."""
    evaluation = next(iter(results["evaluations"].values()))["results"][name]
    figures = [
        EvalResult(
            task_type="audio-classification",
            task_name="Speaker verification",
            dataset_type="heldout",
            dataset_name=f"{evaluation['num_speakers']} held-out speakers of public corpora",
            dataset_config=condition,
            metric_type="eer",
            metric_name=f"Equal error rate, {condition} (%)",
            metric_value=round(100 * of_condition["eer"], 2),
        )
        for condition, of_condition in evaluation["conditions"].items()
    ]
    return ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag="audio-classification",
        license="cc-by-sa-4.0",
        tags=["speech", "speaker-verification", "speech-separation", "contrastive-separative-coding"],
        metrics=["eer"],
        eval_results=figures,
    )


def percent(figures: dict) -> str:
    """An equal error rate in %, with its interval if it has one."""
    low_high = figures["eer_interval"]
    interval = "" if low_high is None else f" ({100 * low_high[0]:.1f}–{100 * low_high[1]:.1f})"
    return f"{100 * figures['eer']:.1f}{interval}"


def within(figures: dict) -> str:
    """An equal error rate within a corpus, in %."""
    return f"{100 * figures['eer_within_source']:.1f}"


def render(name: str) -> ModelCard:
    """The card of a model, from its template, the files in its folder, and the results of the models beside it."""
    folder = CARDS / name
    released = {path.parent.name: json.loads(path.read_text()) for path in CARDS.glob("*/results.json")}
    return ModelCard.from_template(
        card_data(name, released[name]),
        template_path=str(CARDS / f"{name}.md"),
        name=name,
        results=released[name],
        released=released,
        config=json.loads((folder / "config.json").read_text()),
        settings=(folder / "training.yaml").read_text().strip(),
        megabytes=f"{(folder / 'model.safetensors').stat().st_size / 1e6:.1f}",
        percent=percent,
        within=within,
    )


def link_code(folder: Path) -> None:
    """Link the three Hub files into the folder of a model, in place of any copies."""
    for file in CODE:
        (folder / file).unlink(missing_ok=True)
        (folder / file).symlink_to(os.path.relpath(CARDS.parent / "csc_hf" / file, folder))


def main() -> None:
    escape_unprintable()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("name", help="name of the model, its folder and its template")
    add("--model", type=Path, help="folder of the trained model")
    add("--training", nargs="+", type=Path, help="folders of its trainings, in order, each with a results.json")
    add("--settings", type=Path, help="YAML file of its training")
    add("--evaluation", nargs="+", metavar="NAME=FILE", help="a results.json of evaluate_verification.py")
    args = parser.parse_args()
    folder = CARDS / args.name
    if args.model is not None:
        if None in (args.training, args.settings, args.evaluation):
            parser.error("--model needs --training, --settings and --evaluation")
        (architecture,) = CSCConfig.from_pretrained(args.model).architectures or ()
        # The classifier of recordings is of use to training alone.
        model = getattr(csc_hf, architecture).from_pretrained(args.model, num_recording_classes=None)
        folder.mkdir(exist_ok=True)
        for file in CODE:
            (folder / file).unlink(missing_ok=True)  # saving writes the code, and must not write through a link
        model.save_pretrained(folder)
        CSCFeatureExtractor.from_pretrained(args.model).save_pretrained(folder)
        shutil.copy(args.settings, folder / "training.yaml")
        evaluations = {}
        for name, file in (evaluation.split("=", 1) for evaluation in args.evaluation):
            evaluations[name] = json.loads(Path(file).read_text())
            of_models = evaluations[name]["results"]
            evaluations[name]["results"] = {
                args.name if Path(model) == args.model else model: figures for model, figures in of_models.items()
            }
        results = {
            "num_parameters": model.num_parameters(),
            "trainings": [json.loads((training / "results.json").read_text()) for training in args.training],
            "evaluations": evaluations,
        }
        (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    link_code(folder)
    render(args.name).save(folder / "README.md")


if __name__ == "__main__":
    main()
