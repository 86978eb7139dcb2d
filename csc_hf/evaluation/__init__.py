# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Judges embeddings and separated speech: metrics, trials, embedders, verification, calibration, plots, reports."""
