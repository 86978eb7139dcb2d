# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""docs/safety.md says what is: its bounds are those of the code, its licences those of the declared packages."""

import re
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from test_dependencies import PROJECT, requirement_name

from csc_hf import audio

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "safety.md").read_text(encoding="utf-8")
LICENCES = dict(re.findall(r"\| ([\w.-]+) \| ([^|]+?) (?=\|)", PAGE[PAGE.index("## Licences") :]))
FAMILIES = ("Apache", "BSD", "ISC", "LGPL", "MIT", "MPL", "PSF")
ALIASES = {
    "Python Software Foundation": "PSF",
    "Mozilla": "MPL",
    "Enthought": "BSD",
    "EPFL": "MIT",
    "matplotlib": "PSF",
}


def test_the_licence_of_every_declared_package_is_listed():
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    declared = {requirement_name(requirement) for group in groups for requirement in group}
    declared = {re.sub(r"\[\w+\]$", "", name) for name in declared} - {"csc-hf"}
    assert set(LICENCES) - {"package", "---"} == declared


def test_licences_are_those_that_the_packages_state():
    compared = 0
    for name, listed in LICENCES.items():
        try:
            stated = metadata(name)
        except PackageNotFoundError:
            continue
        texts = [stated.get("License-Expression") or "", (stated.get("License") or "")[:200]]
        texts += [line for line in stated.get_all("Classifier") or [] if line.startswith("License")]
        text = " ".join(texts)
        for alias, family in ALIASES.items():
            text = text.replace(alias, family)
        families = {family for family in FAMILIES if family in text}
        compared += bool(families)
        assert not families or any(family in listed for family in families), f"{name}: {listed!r}, it says {text!r}"
        assert not re.search(r"(?<!L)A?GPL", text.replace("LGPL", "")), f"{name} cannot be combined with Apache 2.0"
    assert compared > 10


def test_the_bounds_are_those_of_the_code():
    limits = audio.DecodingLimits()
    assert (limits.max_seconds, limits.max_channels, limits.max_bytes) == (6 * 3600, 64, 2 * 2**30)
    assert (limits.min_rate, limits.max_rate) == (1000, 10**6)
    assert (audio.ARRAY_CHANNELS, audio.TORCHCODEC_SAMPLES, audio.BLOCK_SAMPLES) == (16, 2**30, 2**20)
    rows = (
        "| 6 hours (1.4 GB) |",
        "| 64 |",
        "| 1 kHz to 1 MHz |",
        "| 2 GiB |",
        "| 16 |",
        "| 2³⁰ (4 GB) |",
        "| 2²⁰ (4 MB) |",
        "| 500 MB |",
        "| 20 minutes |",
    )
    assert all(row in PAGE for row in rows)
    in_browser = (ROOT / "examples" / "browser" / "app.js").read_text(encoding="utf-8")
    assert "const MAX_BYTES = 500e6;" in in_browser and "const MAX_SECONDS = 20 * 60;" in in_browser
