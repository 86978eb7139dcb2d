# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Plain tables of what `csc_hf.evaluation.verification.measure` returns."""

from collections.abc import Mapping

from .verification import FIGURES, Figure


def format_report(results: dict) -> str:
    """A plain table of what `measure` returns: a line a condition, error rates in %, "-" for None."""
    conditions = results["conditions"]
    columns = {
        key: figure
        for key, figure in FIGURES.items()
        if figure.heading is not None
        and not (figure.is_optional and all(of.get(key) is None for of in conditions.values()))
    }
    rows = [["condition", *(str(figure.heading) for figure in columns.values())]]
    for name, of_condition in conditions.items():
        rows.append([name, *(_cell(figure, of_condition.get(key)) for key, figure in columns.items())])
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
        row = [name]
        for figures in (of_model["conditions"][name] for of_model in results.values()):
            cells = [_cell(FIGURES["eer"], figures["eer"])]
            if figures["eer_interval"] is not None:
                cells.append(_cell(FIGURES["eer_interval"], figures["eer_interval"]))
            row.append(" ".join(cells))
        rows.append(row)
    return _table(rows)


def _cell(figure: Figure, value) -> str:
    return "-" if value is None else figure.text(value)


def _table(rows: list[list[str]]) -> str:
    """Columns as wide as they need; the first is aligned to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )
