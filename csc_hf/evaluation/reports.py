# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Plain tables of what `csc_hf.evaluation.verification.measure` returns."""

from collections.abc import Mapping


def format_report(results: dict) -> str:
    """A plain table of what `measure` returns: a line a condition, error rates in %, "-" for None."""
    conditions = results["conditions"]
    columns = {
        "EER %": lambda figures: _percent(figures["eer"]),
        "95 %": lambda figures: _interval(figures["eer_interval"]),
        "within": lambda figures: _percent(figures["eer_within_source"]),
        "slot known": lambda figures: _percent(figures["eer_slot_known"]),
        "within ": lambda figures: _percent(figures["eer_slot_known_within_source"]),
        "minDCF": lambda figures: _number(figures["min_dcf"]),
        "actDCF": lambda figures: _number(figures.get("actual_dcf")),
        "Cllr": lambda figures: _number(figures.get("cllr")),
        "minCllr": lambda figures: _number(figures.get("min_cllr")),
        "target": lambda figures: f"{figures['num_target']:,}",
        "other": lambda figures: f"{figures['num_nontarget']:,}",
    }
    if not any(figures["eer_interval"] for figures in conditions.values()):
        del columns["95 %"]
    if not any("cllr" in figures for figures in conditions.values()):
        del columns["actDCF"], columns["Cllr"], columns["minCllr"]
    rows = [["condition", *columns]]
    rows += [[name, *(cell(figures) for cell in columns.values())] for name, figures in conditions.items()]
    improvement = results["si_sdr_improvement"]
    seconds = "" if results["seconds"] is None else f" of {results['seconds']:g} s"
    return "\n".join(
        [
            f"{results['num_speakers']} speakers, {results['num_recordings']} recordings{seconds}, seed "
            f"{results['seed']}, trials {results['trials_sha256'][:12]}",
            _table(rows),
            "SI-SDR improvement " + ("-" if improvement is None else f"{improvement:.1f} dB"),
        ]
    )


def format_comparison(results: Mapping[str, dict]) -> str:
    """A plain table of equal error rates in %, with their intervals: a line a condition, a column a model."""
    names = dict.fromkeys(name for of_model in results.values() for name in of_model["conditions"])
    rows = [["EER %", *results]]
    for name in names:
        of_condition = [of_model["conditions"][name] for of_model in results.values()]
        rows.append([name, *(f"{_percent(f['eer'])} {_interval(f['eer_interval'])}".strip() for f in of_condition)])
    return _table(rows)


def _table(rows: list[list[str]]) -> str:
    """Columns as wide as they need; the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.1f}"


def _interval(interval: list[float] | None) -> str:
    return "" if interval is None else f"({100 * interval[0]:.1f}-{100 * interval[1]:.1f})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
