# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Models as files for programs that have neither Transformers nor this package: ONNX, and programs of `torch.export`.

A model is exported in parts, each a file of its own that computes no more than it returns. Batch and length are free.
Inputs and outputs have the names that the model gives them:

| part | inputs | outputs |
| --- | --- | --- |
| `embedding` | `input_values`, `attention_mask` | of each slot: embedding, activity, when it speaks, segment vectors |
| `separation` | the same | of each slot: waveform, embedding, activity, when it speaks |
| `activity` | the same | of each slot: activity, when it speaks |
| `scorer` | `query`, `memory` | `global_speaker_vectors`, of `CSCForPreTraining.aggregate` |

>>> export_onnx("csc-small", "exported", int8=True)
{'embedding': PosixPath('exported/embedding.onnx'), ...}
"""

import contextlib
import copy
import hashlib
import importlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.fx.experimental import _config

from . import modeling_csc
from .configuration_csc import MODEL_CLASSES, CSCConfig
from .files import check_folder, write_file, writing
from .modeling_csc import CSCForPreTraining, CSCForXVector, CSCModel, CSCPreTrainedModel
from .version import __version__

DESCRIPTION = "export.json"
"""File beside the exported ones that says what a program must know: sampling rate, sizes, calibration, names."""

TOLERANCE = 1e-4
"""Largest difference of an exported part and its model, for a waveform whose samples have variance 1."""

OPSET = 20

PARTS: dict[str, tuple[str, ...]] = {
    "embedding": ("source_embeddings", "source_activity", "source_frame_activity", "source_hidden_states"),
    "separation": ("sources", "source_embeddings", "source_activity", "source_frame_activity"),
    "activity": ("source_activity", "source_frame_activity"),
    "scorer": ("global_speaker_vectors",),
}
"""Outputs of each part. `source_frame_activity` is left out if the model has none. The embedding of a `CSCForXVector`
is its `embeddings`."""

_SHAPES = {
    "input_values": ("batch", "samples"),
    "attention_mask": ("batch", "samples"),
    "sources": ("batch", "slots", "samples"),
    "source_embeddings": ("batch", "slots", "speaker_embedding_size"),
    "source_activity": ("batch", "slots"),
    "source_frame_activity": ("batch", "slots", "activity_frames"),
    "source_hidden_states": ("batch", "slots", "segments", "segment_vector_size"),
    "embeddings": ("batch", "speaker_embedding_size"),
    "query": ("queries", "speaker_embedding_size"),
    "memory": ("memory", "segment_vector_size"),
    "global_speaker_vectors": ("queries", "speaker_embedding_size"),
}
_FREE = {"batch", "samples", "activity_frames", "segments", "queries", "memory"}


class _Part(nn.Module):
    """Some outputs of a model, as a dictionary."""

    def __init__(self, model: nn.Module, outputs: Sequence[str]):
        super().__init__()
        self.model = model
        self.inputs = ("input_values", "attention_mask")
        self.outputs = tuple(outputs)

    def forward(self, input_values: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        output = self.model(input_values, attention_mask)
        return {name: output[name] for name in self.outputs}

    def example(self) -> tuple[torch.Tensor, ...]:
        """Two recordings, one of which is padded."""
        input_values = torch.randn(2, 20_000, generator=torch.Generator().manual_seed(0))
        attention_mask = torch.ones(input_values.shape, dtype=torch.long)
        attention_mask[1, 13_000:] = 0
        return input_values, attention_mask


class _Scorer(nn.Module):
    """The cross-attention of a model, over the segment vectors of one enrolled speaker."""

    def __init__(self, model: CSCForPreTraining):
        super().__init__()
        self.model = model
        self.inputs = ("query", "memory")
        self.outputs = PARTS["scorer"]

    def forward(self, query: torch.Tensor, memory: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"global_speaker_vectors": self.model.aggregate(query, memory[None])}

    def example(self) -> tuple[torch.Tensor, ...]:
        """Two embeddings that ask a memory of some segments."""
        generator = torch.Generator().manual_seed(0)
        query = torch.randn(2, self.model.config.speaker_embedding_size, generator=generator)
        memory = torch.randn(12, self.model.config.segment_vector_size, generator=generator)
        return nn.functional.normalize(query), memory


def export_onnx(
    model: CSCPreTrainedModel | str | os.PathLike,
    out_dir: str | os.PathLike,
    parts: Sequence[str] | None = None,
    int8: bool = False,
) -> dict[str, Path]:
    """
    Write a model as ONNX files, `embedding.onnx` and so on, and `export.json`, which describes them.

    Each file is run by ONNX Runtime and compared with the model, on padded recordings, before it is written.

    Args:
        model: A CSC model, or the folder or Hub name of a saved one.
        out_dir: Folder for the files. It is made if need be; files of these names are replaced.
        parts: Keys of `PARTS`; all that the model has if not given.
        int8: Whether to write `embedding.int8.onnx` and so on as well, whose linear layers and LSTMs compute with
            8 bits. These differ from the model; docs/deploy.md says how much.

    Returns:
        Path of each file, by part; with `int8` also by `"embedding.int8"` and so on.

    Raises:
        ImportError: A package of the extra `export` is missing.
        ValueError: The model has no such part.
        RuntimeError: A file computes something else than the model. Nothing can be done about it but to report it.
    """
    _check_packages()
    loaded = _loaded(model)
    modules = _modules(loaded, parts)
    folder = check_folder(out_dir)
    files: dict[str, Path] = {}
    for part, module in modules.items():
        files[part] = folder / f"{part}.onnx"
        _write_onnx(module, files[part])
        if int8:
            files[f"{part}.int8"] = folder / f"{part}.int8.onnx"
            _quantise(module, files[part], files[f"{part}.int8"])
    _describe(folder, loaded, modules)
    return files


def export_torch(
    model: CSCPreTrainedModel | str | os.PathLike, out_dir: str | os.PathLike, parts: Sequence[str] | None = None
) -> dict[str, Path]:
    """
    Write a model as programs that `torch.export.load` reads and AOTInductor compiles: `embedding.pt2` and so on, and
    `export.json`, which describes them. They take the arguments and return the dictionaries of [`export_onnx`].

    Args, Returns, Raises:
        As [`export_onnx`]; it needs no other packages.
    """
    loaded = _loaded(model)
    modules = _modules(loaded, parts)
    folder = check_folder(out_dir)
    files = {part: folder / f"{part}.pt2" for part in modules}
    for part, module in modules.items():
        with writing(files[part]) as unfinished:
            torch.export.save(_program(module), unfinished)
    _describe(folder, loaded, modules)
    return files


# --- what is exported ------------------------------------------------------------------------------------------------


def _modules(model: CSCPreTrainedModel, parts: Sequence[str] | None) -> dict[str, _Part | _Scorer]:
    """A module for each part, in float32 on the CPU, apart from the model."""
    model = copy.deepcopy(model).float().cpu().eval()
    model.set_attn_implementation("eager")  # SDPA would take a batch of one or a short recording for a special case
    has_frames = model.config.frame_activity
    outputs = {part: [name for name in names if has_frames or "frame" not in name] for part, names in PARTS.items()}
    found: dict[str, _Part | _Scorer] = {}
    if isinstance(model, CSCForXVector):
        found["embedding"] = _Part(model, ["embeddings"])
    elif isinstance(model.base_model, CSCModel) and not hasattr(model, "classifier"):
        encoder = CSCModel(model.config).eval()
        encoder.load_state_dict(model.base_model.state_dict(), strict=False)  # without the separator
        found["embedding"] = _Part(encoder, outputs["embedding"])
        if model.base_model.separator is not None:
            found["separation"] = _Part(model.base_model, outputs["separation"])
        found["activity"] = _Part(encoder, outputs["activity"])
        if isinstance(model, CSCForPreTraining):
            found["scorer"] = _Scorer(model)
    for part in found if parts is None else parts:
        if part not in found:
            raise ValueError(
                f"{type(model).__name__} has no part {part!r} to export: choose among {', '.join(found) or 'none'}"
            )
    return found if parts is None else {part: found[part] for part in parts}


def _loaded(model: CSCPreTrainedModel | str | os.PathLike) -> CSCPreTrainedModel:
    """The model itself, or a saved one, as the class that saved it."""
    if isinstance(model, CSCPreTrainedModel):
        return model
    name = os.fspath(model)
    config = CSCConfig.from_pretrained(name)
    architecture = (config.architectures or ["CSCForPreTraining"])[0]
    if architecture not in MODEL_CLASSES:
        raise ValueError(f"{name} holds a {architecture}, which is no model of csc_hf: {', '.join(MODEL_CLASSES)}")
    return getattr(modeling_csc, architecture).from_pretrained(name)


def _program(module: _Part | _Scorer) -> torch.export.ExportedProgram:
    shapes = {
        name: {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(_SHAPES[name]) if size in _FREE}
        for name in module.inputs
    }
    with warnings.catch_warnings(), _config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        # An LSTM keeps its weights in a list as well, which export takes for a change of the model.
        warnings.filterwarnings("ignore", message="(?s)The tensor attributes? .* assigned during export")
        # Without `backed_size_oblivious`, a program would refuse what has a size of one: a batch, a short recording.
        return torch.export.export(module, module.example(), dynamic_shapes=shapes)


def _describe(folder: Path, loaded: CSCPreTrainedModel, modules: dict[str, _Part | _Scorer]) -> None:
    """Write `DESCRIPTION`. Parts that an earlier call described stay, if they are of the same model."""
    config = cast(CSCConfig, next(iter(modules.values())).model.config)
    model = _fingerprint(loaded)
    description: dict[str, Any] = {
        "version": __version__,
        "model_sha256": model,
        "sampling_rate": config.sampling_rate,
        "num_sources": config.num_sources,
        "speaker_embedding_size": config.speaker_embedding_size,
        "activity_stride": config.activity_stride if config.frame_activity else None,
        "segment_stride": config.segment_stride,
        "calibration": config.calibration,
        "parts": _described(folder, model)
        | {
            part: {
                "inputs": {name: _SHAPES[name] for name in module.inputs},
                "outputs": {name: _SHAPES[name] for name in module.outputs},
            }
            for part, module in modules.items()
        },
    }
    write_file(folder / DESCRIPTION, json.dumps(description, indent=2) + "\n")


def _described(folder: Path, model: str) -> dict[str, Any]:
    """The parts that an earlier call has exported of a model, known by its hash, and that are still there."""
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        earlier = description["parts"] if description["model_sha256"] == model else {}
        return {part: of for part, of in earlier.items() if any(folder.glob(f"{part}.*"))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no such file, or of an earlier version
        return {}


def _fingerprint(model: CSCPreTrainedModel) -> str:
    """Hash of what the parts of a model compute: its class and weights, in float32, and its settings."""
    settings = {name: getattr(model.config, name) for name in sorted(set(CSCConfig.__annotations__) - {"calibration"})}
    digest = hashlib.sha256(json.dumps([type(model).__name__, settings], sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


# --- ONNX ------------------------------------------------------------------------------------------------------------


def _check_packages() -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):  # torch.onnx imports the last
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ImportError(f"{package} cannot be imported ({error}): pip install 'csc-hf[export]'") from error


def _write_onnx(module: _Part | _Scorer, path: Path) -> None:
    """Export, optimise, compare, write."""
    import onnx

    with _quiet():
        program = torch.onnx.export(
            _program(module),
            dynamo=True,
            opset_version=OPSET,
            custom_translation_table={torch.ops.aten.sigmoid.default: _exact_sigmoid()},
            input_names=module.inputs,
            output_names=module.outputs,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    with tempfile.TemporaryDirectory() as scratch:
        raw, optimised = os.path.join(scratch, "raw.onnx"), os.path.join(scratch, "optimised.onnx")
        program.save(raw)
        _session(raw, optimised)
        onnx_model = onnx.load(optimised)
    _sum_axis_by_axis(onnx_model)
    _tidy(onnx_model, module)
    _compare(module, onnx_model.SerializeToString(), path.name)
    write_file(path, onnx_model.SerializeToString())


def _exact_sigmoid() -> Callable:
    """ONNX Runtime's sigmoid is off by 1e-7. Masks get that small, and logarithms are taken of what they leave."""
    from onnxscript import FLOAT, opset20

    def sigmoid(x: FLOAT) -> FLOAT:  # the types of onnxscript's operators do not fit together
        return opset20.Reciprocal(opset20.Add(opset20.Exp(opset20.Neg(x)), opset20.Constant(value_float=1.0)))  # type: ignore

    return sigmoid


def _session(model: str | bytes, optimised: str | None = None):
    """A session of ONNX Runtime on the CPU. With a path, it also writes the model there, with all computed that does
    not depend on the input, in operators of the standard."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    if optimised is not None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = optimised
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _sum_axis_by_axis(onnx_model) -> None:
    """ONNX Runtime sums over several axes one value after the other. In float32 that loses what the norms over a
    recording live on, the more the longer it is: 2e-3 after 40 seconds. Axis by axis, the sums are short."""
    from onnx import helper, numpy_helper

    graph = onnx_model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        summed = node.op_type == "ReduceSum" and node.input[1] in constants
        axes = constants[node.input[1]].tolist() if summed else []
        if len(axes) < 2:
            nodes.append(node)
            continue
        keepdims = next((attribute.i for attribute in node.attribute if attribute.name == "keepdims"), 1)
        assert keepdims, f"{node.name} drops axes, by which those before it are counted"
        value = node.input[0]
        for axis in reversed(axes):
            name, total = f"{node.output[0]}.axis_{axis}", f"{node.output[0]}.over_{axis}"
            graph.initializer.append(numpy_helper.from_array(np.array([axis]), name))
            nodes.append(helper.make_node("ReduceSum", [value, name], [total], name=total, keepdims=1))
            value = total
        nodes[-1].output[0] = node.output[0]
    del graph.node[:]
    graph.node.extend(nodes)


def _tidy(onnx_model, module: _Part | _Scorer) -> None:
    """Name the axes, and take out what tells of the machine that exported: paths and lines of source code."""
    graph = onnx_model.graph
    del graph.value_info[:]  # under other names for the axes
    for value in (*graph.input, *graph.output):
        for axis, size in zip(value.type.tensor_type.shape.dim, _SHAPES[value.name], strict=True):
            if size in _FREE:
                axis.dim_param = size
    for node in graph.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]
    del graph.metadata_props[:]
    del onnx_model.metadata_props[:]
    used = [opset for opset in onnx_model.opset_import if opset.domain in {node.domain for node in graph.node}]
    del onnx_model.opset_import[:]
    onnx_model.opset_import.extend(used)
    onnx_model.producer_name, onnx_model.producer_version = "csc_hf", __version__


def _compare(module: _Part | _Scorer, onnx_model: bytes, name: str) -> None:
    inputs = module.example()
    with torch.no_grad():
        expected = module(*inputs)
    arrays = [tensor.numpy() for tensor in inputs]
    results = _session(onnx_model).run(list(module.outputs), dict(zip(module.inputs, arrays, strict=True)))
    for output, result in zip(module.outputs, results, strict=True):
        error = np.abs(result - expected[output].numpy()).max()
        if not error <= TOLERANCE:
            raise RuntimeError(f"{output} of {name} differs from the model by {error:.2g}, above {TOLERANCE:g}")


def _quantise(module: _Part | _Scorer, source: Path, target: Path) -> None:
    """Weights of linear layers and LSTMs to 8 bits, with a scale for each channel; what they read, as they run."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(source).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {parameter.detach().numpy().tobytes() for parameter in module.parameters() if parameter.dim() == 2}
    # Filters of the spectrogram are products with constants, too.
    linear = {name for name, array in constants.items() if {array.tobytes(), array.T.tobytes()} & weights}
    kept = [node.name for node in graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] not in linear]
    with _quiet(), writing(target) as unfinished:
        quantize_dynamic(
            source,
            unfinished,
            op_types_to_quantize=["MatMul", "LSTM"],
            nodes_to_exclude=kept,
            per_channel=True,
            reduce_range=True,  # CPUs without VNNI add products of 8 bits in 16, which overflow
            weight_type=QuantType.QInt8,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters report about themselves: missing torchvision, deprecations inside PyTorch, advice."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "onnx_ir", "root")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for name in levels:
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
