# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Reads single-speaker audio and mixes it: utterances, reservoir, mixing, rooms, stream, conversations."""
