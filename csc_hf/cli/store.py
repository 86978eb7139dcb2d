# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Enrolled voices in a safetensors file, with what they depend on in its metadata.

The tensors of voice 0 are `embedding.0` (embedding,) and, where speakers are enrolled by the cross-attention,
`memory.0` (segments, hidden size). The metadata:

- `format` "csc_hf.voices", `version` "1";
- `voices`: a JSON list of `{"name": ..., "recordings": ..., "several_speakers": ...}`, one for each voice, with the
  number of recordings and whether more than one voice was heard in one of them;
- `model`: what the model was called, for messages; `fingerprint`: a hash of what its embeddings depend on;
- `enrolment`: "mean", "attention" or "scorer"; `sampling_rate`: in Hz.
"""

import hashlib
import json
import operator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..configuration_csc import CSCConfig
from ..enrolment import Enrolment, check_name
from ..evaluation.calibration import check_enrolment
from ..files import write_file
from ..modeling_csc import CSCPreTrainedModel, saved_name
from .errors import fail

FORMAT = "csc_hf.voices"
VERSION = 1
SEPARATOR = "separator."
"""Prefix of the weights of `CSCModel` that no embedding depends on, and that some heads lack."""


@dataclass
class VoiceStore:
    """Enrolled voices.

    Attributes:
        model: what the model that enrolled them was called.
        fingerprint: from `fingerprint`.
        enrolment: one of `csc_hf.evaluation.calibration.ENROLMENTS`.
        sampling_rate: of the model, in Hz.
        voices: by name.
        recordings: the number of recordings of each voice.
    """

    model: str
    fingerprint: str
    enrolment: str
    sampling_rate: int
    voices: dict[str, Enrolment] = field(default_factory=dict)
    recordings: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, voice: Enrolment, recordings: int) -> None:
        """Add a voice, or replace the one of that name.

        Raises:
            ValueError: a voice cannot be called so (`csc_hf.enrolment.check_name`).
        """
        check_name(name)
        self.voices[name] = voice
        self.recordings[name] = recordings

    @property
    def embeddings(self) -> dict[str, np.ndarray]:
        """(embedding,) of each voice."""
        return {name: voice.embedding for name, voice in self.voices.items()}

    def check_model(self, path: Path, model: CSCPreTrainedModel, name: str) -> None:
        """Raise a ValueError unless `model`, which users call `name`, is the one that the voices are from, and their
        numbers are as it makes them."""
        own = fingerprint(model, self.enrolment)
        if own != self.fingerprint:
            raise ValueError(
                f"the voices in {str(path)!r} were enrolled with the model {self.model!r} ({self.fingerprint[:12]}), "
                f"and this is {name!r} ({own[:12]}): give that one as --model, or enrol in a new store"
            )

        sizes = {"embedding": model.config.speaker_embedding_size, "memory": model.config.hidden_size}
        for voice, enrolment in self.voices.items():
            vectors = {"embedding": torch.from_numpy(enrolment.embedding)[None]}
            if self.enrolment == "attention":
                vectors["memory"] = torch.empty(0) if enrolment.memory is None else enrolment.memory
            for what, rows in vectors.items():
                if (
                    rows.ndim != 2
                    or not len(rows)
                    or rows.shape[1] != sizes[what]
                    or not rows.is_floating_point()
                    or not rows.isfinite().all()
                    or (what == "embedding" and abs(rows.norm() - 1) > 1e-3)
                ):
                    raise ValueError(
                        f"{str(path)!r} is damaged: the {what} of {voice!r} is not of size {sizes[what]}, finite, and "
                        f"of unit length: enrol {voice!r} again, in a new store"
                    )

    def save(self, path: Path) -> None:
        """Write the store beside `path`, and rename it: whatever happens, `path` is complete."""
        tensors, voices = {}, []
        for number, (name, voice) in enumerate(self.voices.items()):
            tensors[f"embedding.{number}"] = torch.from_numpy(voice.embedding).contiguous()
            if voice.memory is not None:
                tensors[f"memory.{number}"] = voice.memory.cpu().contiguous()
            voices.append(
                {"name": name, "recordings": self.recordings[name], "several_speakers": voice.several_speakers}
            )
        metadata = {
            "format": FORMAT,
            "version": str(VERSION),
            "voices": json.dumps(voices),
            "model": self.model,
            "fingerprint": self.fingerprint,
            "enrolment": self.enrolment,
            "sampling_rate": str(self.sampling_rate),
        }
        write_file(path, save(tensors, metadata))

    @classmethod
    def load(cls, path: Path) -> "VoiceStore":
        """Read a store.

        Raises:
            ValueError: the file is no store of voices, or is damaged, or is of a newer version.
        """
        damaged = f"{str(path)!r} is no store of voices, or is damaged"
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}
        except SafetensorError as error:
            raise ValueError(f"{damaged}: {error}") from error
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{str(path)!r} is no store of voices: give one that `csc-hf enrol` has written")
        if metadata.get("version") != str(VERSION):
            raise ValueError(
                f"{str(path)!r} is a store of version {metadata.get('version')}, and this csc_hf knows version "
                f"{VERSION}: update csc_hf"
            )
        try:
            store = cls(
                metadata["model"], metadata["fingerprint"], metadata["enrolment"], int(metadata["sampling_rate"])
            )
            check_enrolment(store.enrolment)
            for number, voice in enumerate(json.loads(metadata["voices"])):
                name = voice["name"]
                if name in store.voices:
                    raise ValueError(f"two voices are called {name!r}")
                # Not `check_name`: a store of an earlier version may hold names that are refused today.
                if not name.strip() or not name.isprintable():
                    raise ValueError(f"{name!r} is no name of a voice")
                embedding = tensors[f"embedding.{number}"].float().numpy()
                several = voice.get("several_speakers", False) is True  # older stores do not tell
                store.voices[name] = Enrolment(embedding, tensors.get(f"memory.{number}"), False, several)
                store.recordings[name] = operator.index(voice["recordings"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:  # recursion is the last
            raise ValueError(f"{damaged}: {error}") from error
        return store


def load_voices(path: Path) -> VoiceStore:
    """A store without the voices whose names no speaker of a diarization can have, of which it warns.

    Raises:
        ValueError: there is no store, or it is damaged.
    """
    if not path.is_file():
        raise ValueError(f"no store {str(path)!r}: make one with csc-hf enrol")
    store = VoiceStore.load(path)
    for name in list(store.voices):
        try:
            check_name(name)
        except ValueError as error:
            fail(f"warning: {str(path)!r}: {error}. This voice is left out; enrol it again by another name")
            del store.voices[name], store.recordings[name]
    return store


def fingerprint(model: CSCPreTrainedModel, enrolment: str = "mean") -> str:
    """Hash of what the embeddings of a CSC model depend on: configuration and weights of its encoder, and of the
    cross-attention where it enrols speakers. All heads of a checkpoint have the same. Calibrations do not count."""
    defaults = CSCConfig()
    settings = {
        name: getattr(model.config, name)
        for name in sorted(set(CSCConfig.__annotations__) - {"calibration"})
        if getattr(model.config, name) != getattr(defaults, name)
    }
    digest = hashlib.sha256(json.dumps([enrolment, settings], sort_keys=True).encode())
    parts: list[torch.nn.Module] = [model.base_model]
    if enrolment == "attention":
        parts.append(model.get_submodule("aggregator"))
    for part in parts:
        for name, tensor in part.state_dict().items():
            if not name.startswith(SEPARATOR):
                digest.update(f"{saved_name(name)} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
