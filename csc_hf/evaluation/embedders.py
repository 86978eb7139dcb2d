# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Speaker encoders behind one protocol, ours and others, so that `csc_hf.evaluation.verification` can judge them alike.

An *embedder* is a callable that takes a list of waveforms (T,), float32 at 16 kHz, of any lengths, and returns their
embeddings: an array (N, E), or `Slots`. Any function will do:

>>> def loudness(waveforms):
...     return np.array([[1.0, np.abs(waveform).mean()] for waveform in waveforms])

To have its embeddings cached on disk it needs an attribute `fingerprint`, a string that changes when they would.
"""

import hashlib
import importlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch

from ..audio import SAMPLING_RATE


@dataclass(frozen=True, eq=False)
class Slots:
    """What an embedder made of N waveforms that may hold several speakers, a slot for each of up to C.

    Attributes:
        embeddings: (N, C, E).
        activity: (N, C) logit that somebody speaks in the slot.
        sources: of each waveform (C, T), what was separated; None where the embedder does not separate.
    """

    embeddings: np.ndarray
    activity: np.ndarray
    sources: list[np.ndarray] | None = None


Embedder = Callable[[list[np.ndarray]], np.ndarray | Slots]


class CSCEmbedder:
    """The slots of a CSC model.

    Args:
        model: Called with `input_values` (B, T) and `attention_mask` (B, T); returns `source_embeddings` (B, C, E),
            `source_activity` (B, C) logits and, where it separates, `sources` (B, C, T): `CSCForPreTraining`,
            `CSCForSpeechSeparation`, `CSCModel`. It runs in eval mode; each of its modules gets its mode back.
        batch_size: Waveforms a forward pass. They are batched by length and padded, which changes no embedding.
    """

    def __init__(self, model: torch.nn.Module, batch_size: int = 16):
        self.model = model
        self.batch_size = _check_batch_size(batch_size)

    @property
    def fingerprint(self) -> str:
        return _fingerprint(self.model)

    @torch.inference_mode()
    def __call__(self, waveforms: list[np.ndarray]) -> Slots:
        embeddings, activity, sources = {}, {}, {}
        with _evaluating(self.model):
            for numbers in _batches(waveforms, self.batch_size):
                output = self._run(self.model, [waveforms[number] for number in numbers])
                embeddings |= zip(numbers, _to_numpy(output.source_embeddings), strict=True)
                activity |= zip(numbers, _to_numpy(output.source_activity), strict=True)
                if output.sources is not None:
                    for number, estimates in zip(numbers, _to_numpy(output.sources), strict=True):
                        sources[number] = estimates[:, : len(waveforms[number])]
        order = range(len(waveforms))
        return Slots(
            embeddings=np.stack([embeddings[number] for number in order]),
            activity=np.stack([activity[number] for number in order]),
            sources=[sources[number] for number in order] if sources else None,
        )

    @torch.inference_mode()
    def attend(self, waveforms: list[np.ndarray], queries: np.ndarray) -> np.ndarray:
        """Enrolment by the trained cross-attention of `CSCForPreTraining`: each query (Q, E), an embedding to be
        verified, asks all slots of all recordings of the enrolled speaker, as it did in training. Returns the cosines
        (Q,) of queries and answers."""
        if not hasattr(self.model, "aggregate"):
            raise ValueError(
                f'enrolment="attention" needs the cross-attention, which {type(self.model).__name__} lacks: load '
                "CSCForPreTraining"
            )
        with _evaluating(self.model):
            outputs = [self._run(self.model.base_model, [waveform]) for waveform in waveforms]
            memory = torch.cat([output.source_hidden_states[0].flatten(0, 1) for output in outputs])
            asked = torch.from_numpy(queries).to(memory)
            return _to_numpy(torch.nn.functional.cosine_similarity(self.model.aggregate(asked, memory[None]), asked))

    def _run(self, model: torch.nn.Module, waveforms: list[np.ndarray]):
        device = next(model.parameters()).device
        lengths = torch.tensor([len(waveform) for waveform in waveforms])
        input_values = torch.nn.utils.rnn.pad_sequence(
            [torch.from_numpy(waveform) for waveform in waveforms], batch_first=True
        )
        attention_mask = (torch.arange(input_values.shape[1]) < lengths[:, None]).long()
        return model(input_values=input_values.to(device), attention_mask=attention_mask.to(device))


class XVectorEmbedder:
    """The embedding of any `AutoModelForAudioXVector` (WavLM, UniSpeech-SAT, Wav2Vec2, `CSCForXVector`, ...).

    Only waveforms of one length share a batch, since some of these models give another embedding where there is
    padding.

    Args:
        model: In eval mode.
        feature_extractor: Called with a list of waveforms and their `sampling_rate`.
        batch_size: Waveforms a forward pass, at most.
    """

    def __init__(self, model: torch.nn.Module, feature_extractor: Callable, batch_size: int = 16):
        self.model = model
        self.feature_extractor = feature_extractor
        self.batch_size = _check_batch_size(batch_size)

    @property
    def fingerprint(self) -> str:
        return _fingerprint(self.model) + json.dumps(self.feature_extractor.to_dict(), sort_keys=True, default=str)

    @torch.inference_mode()
    def __call__(self, waveforms: list[np.ndarray]) -> np.ndarray:
        embeddings = {}
        for numbers in _batches(waveforms, self.batch_size, one_length=True):
            batch = [waveforms[number] for number in numbers]
            inputs = self.feature_extractor(batch, sampling_rate=SAMPLING_RATE, return_tensors="pt")
            output = self.model(**inputs.to(self.model.device))
            embeddings |= zip(numbers, _to_numpy(output.embeddings), strict=True)
        return np.stack([embeddings[number] for number in range(len(waveforms))])


class ResemblyzerEmbedder:
    """Resemblyzer's encoder (a GE2E LSTM, Wan et al. 2018), whose weights are in its package. Its own preprocessing
    cuts out pauses. `pip install --no-deps resemblyzer`, then `pip install librosa webrtcvad-wheels`."""

    def __init__(self):
        package = _import("resemblyzer", "pip install --no-deps resemblyzer && pip install librosa webrtcvad-wheels")
        self.encoder = package.VoiceEncoder(verbose=False)
        self.preprocess = package.preprocess_wav
        self.fingerprint = f"resemblyzer {importlib.metadata.version('resemblyzer')}"

    def __call__(self, waveforms: list[np.ndarray]) -> np.ndarray:
        return np.stack([self.encoder.embed_utterance(self.preprocess(waveform)) for waveform in waveforms])


class SpeechBrainEmbedder:
    """An encoder of SpeechBrain, such as ECAPA-TDNN, from a local folder with its hyperparams.yaml and weights."""

    def __init__(self, folder: str | os.PathLike):
        package = _import("speechbrain.inference.speaker", "pip install speechbrain")
        self.encoder = package.EncoderClassifier.from_hparams(source=os.fspath(folder), savedir=os.fspath(folder))
        self.fingerprint = _fingerprint(self.encoder.mods)

    @torch.inference_mode()
    def __call__(self, waveforms: list[np.ndarray]) -> np.ndarray:
        return np.stack([_to_numpy(self.encoder.encode_batch(torch.from_numpy(w)[None])[0, 0]) for w in waveforms])


class MFCCEmbedder:
    """Mean and standard deviation over time of 20 MFCCs, without the first, which is the level: what a learnt
    embedding has to beat. Each is divided by its typical size, or the first few would decide alone."""

    def __init__(self):
        transforms = _import("torchaudio.transforms", "install the torchaudio that matches your torch")
        self.mfcc = transforms.MFCC(
            SAMPLING_RATE, n_mfcc=21, melkwargs={"n_fft": 400, "hop_length": 160, "n_mels": 40}
        )
        self.fingerprint = f"mfcc, torchaudio {importlib.metadata.version('torchaudio')}"

    def __call__(self, waveforms: list[np.ndarray]) -> np.ndarray:
        return np.stack([self._embed(torch.from_numpy(waveform)) for waveform in waveforms])

    def _embed(self, waveform: torch.Tensor) -> np.ndarray:
        # A window has 400 samples, and reflection at the borders needs half of it.
        waveform = torch.nn.functional.pad(waveform, (0, max(0, 400 - len(waveform))))
        frames = self.mfcc(waveform)[1:]
        size = 1 / torch.arange(1, len(frames) + 1)
        return torch.cat([frames.mean(dim=1) / size, frames.std(dim=1, correction=0) / size]).numpy()


def load_embedder(spec: str, batch_size: int = 16) -> Embedder:
    """An embedder by name, on the GPU if there is one.

    Args:
        spec: "mfcc"; "resemblyzer"; or a saved model, by its folder or its name on the Hub: a CSC model (any head but
            `CSCForXVector` gives its slots), a model with an x-vector head, a local folder of SpeechBrain's.
        batch_size: Waveforms a forward pass.

    Raises:
        ImportError: a package is missing.
        ValueError: the saved model has no speaker embedding.
    """
    if spec == "mfcc":
        return MFCCEmbedder()
    if spec == "resemblyzer":
        return ResemblyzerEmbedder()
    if os.path.isfile(os.path.join(spec, "hyperparams.yaml")):
        return SpeechBrainEmbedder(spec)
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForAudioXVector

    from .. import CSCConfig, CSCForPreTraining, CSCForSpeechSeparation

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = AutoConfig.from_pretrained(spec)
    is_x_vector = any(name.endswith("ForXVector") for name in config.architectures or ())
    if isinstance(config, CSCConfig) and not is_x_vector:
        with_aggregator = "CSCForPreTraining" in (config.architectures or ())
        model_class = CSCForPreTraining if with_aggregator else CSCForSpeechSeparation
        return CSCEmbedder(model_class.from_pretrained(spec).to(device), batch_size)
    if not is_x_vector:
        raise ValueError(
            f"{spec!r} holds {config.architectures}, which gives no speaker embedding: choose a model with an "
            "x-vector head or a CSC model"
        )
    model = AutoModelForAudioXVector.from_pretrained(spec).to(device).eval()
    return XVectorEmbedder(model, AutoFeatureExtractor.from_pretrained(spec), batch_size)


def _batches(waveforms: Sequence[np.ndarray], batch_size: int, one_length: bool = False) -> Iterator[list[int]]:
    """Numbers of the waveforms of each batch, by length, so that there is little padding; or none (`one_length`)."""
    batch: list[int] = []
    for number in sorted(range(len(waveforms)), key=lambda number: len(waveforms[number])):
        if len(batch) == batch_size or (one_length and batch and len(waveforms[number]) != len(waveforms[batch[0]])):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


class _evaluating:
    """Within, a model is in eval mode; then each of its modules gets its mode back."""

    def __init__(self, model: torch.nn.Module):
        self.model = model

    def __enter__(self) -> None:
        self.modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()

    def __exit__(self, *exception) -> None:
        for module, training in self.modes:
            module.training = training


def _check_batch_size(batch_size: int) -> int:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return batch_size


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


def _fingerprint(model: torch.nn.Module) -> str:
    """Hash of a model's class, configuration and weights."""
    config = model.config.to_json_string() if hasattr(model, "config") else ""
    digest = hashlib.sha256(f"{type(model).__name__} {config}".encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _import(module: str, remedy: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:  # a torchaudio built for another torch raises any of them
        raise ImportError(f"{module} cannot be imported ({error}): {remedy}") from error
