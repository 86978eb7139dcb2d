# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Tables and the picture of what run.sh found: equal error rates by condition, and over the share of labels.

    python benchmarks/label_free/tables.py runs/label_free --picture docs/images/label_free.png
"""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from csc_hf.files import escape_unprintable

CONDITIONS = ("clean", "noise0", "mix0", "mix0_mix0")
STARTS = {"untrained": "from nothing", "label_free": "from label-free weights"}


def read_results(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """What evaluate_verification.py found: set of people -> system -> results."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for file in sorted(folder.glob("results/*/*/results.json")):
        (results,) = json.loads(file.read_text())["results"].values()
        found.setdefault(file.parts[-3], {})[file.parts[-2]] = results
    return found


def table(systems: dict[str, dict[str, Any]]) -> str:
    """Error rates in %: pooled (95 % interval) / within a source."""
    lines = [f"| | {' | '.join(CONDITIONS)} | SI-SDRi, dB |", "| --- |" + " --- |" * (len(CONDITIONS) + 1)]
    for system, results in systems.items():
        cells = []
        for condition in CONDITIONS:
            figures = results["conditions"][condition]
            low, high = (100 * rate for rate in figures["eer_interval"])
            within = 100 * figures["eer_within_source"]
            cells.append(f"{100 * figures['eer']:.1f} ({low:.1f}–{high:.1f}) / {within:.1f}")
        improvement = results["si_sdr_improvement"]
        cells.append("" if improvement is None else f"{improvement:.1f}")
        lines.append(f"| {system} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(results: dict[str, dict[str, dict[str, Any]]], shares: list[int]) -> Figure:
    """Error rates over the share of the labels: a row for each set of people, a panel for each condition."""
    figure = Figure(figsize=(10, 2.8 * len(results)), layout="constrained")
    axes = figure.subplots(len(results), 3, squeeze=False, sharex=True)
    for row, (people, systems) in zip(axes, results.items(), strict=True):
        for panel, condition in zip(row, CONDITIONS, strict=False):
            for colour, (start, label) in zip(("grey", "tab:blue"), STARTS.items(), strict=True):
                figures = [systems[f"labels-{share}-from-{start}"]["conditions"][condition] for share in shares]
                rates = [100 * found["eer"] for found in figures]
                low, high = zip(*(found["eer_interval"] for found in figures), strict=True)
                panel.plot(shares, rates, "o-", color=colour, label=label)
                panel.fill_between(
                    shares, [100 * rate for rate in low], [100 * rate for rate in high], color=colour, alpha=0.15
                )
            without = 100 * systems["label_free"]["conditions"][condition]["eer"]
            panel.axhline(without, color="tab:blue", linestyle=":", label="no labels at all")
            panel.set(title=f"{people}: {condition}", xscale="log", ylim=(0, None))
            panel.set_xticks(shares, [f"{share} %" for share in shares])
            panel.grid(linewidth=0.4)
        row[0].set_ylabel("equal error rate, %")
    for panel in axes[-1]:
        panel.set_xlabel("of the speakers labelled")
    axes[0][0].legend(fontsize="small")
    return figure


def main(argv: list[str] | None = None) -> None:
    escape_unprintable()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="OUT", help="the folder of run.sh")
    parser.add_argument("--picture", type=Path, help="file for the picture")
    parser.add_argument("--shares", type=int, nargs="+", default=[5, 20, 100], help="shares of the labels, in %%")
    args = parser.parse_args(argv)
    results = read_results(args.folder)
    for people, systems in results.items():
        (speakers,) = {found["num_speakers"] for found in systems.values()}
        print(f"### {people}: {speakers} people\n\n{table(systems)}\n")
    if args.picture is not None:
        draw(results, args.shares).savefig(args.picture, dpi=120)


if __name__ == "__main__":
    main()
