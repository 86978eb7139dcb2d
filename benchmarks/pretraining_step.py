# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
A step of pre-training: seconds of audio a second, its rate as a share of the machine's matrix product, and where its
time goes. On the CPU, and in bfloat16 on a GPU if there is one.
"""

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from measure import SAMPLING_RATE, Section, alone, interleave, multiply_accumulates, parameters, spread, table

from csc_hf import CSCConfig, CSCForPreTraining
from csc_hf import modeling_csc as modeling
from csc_hf.training.cpu import keep_freed_memory

CROP_SECONDS = 2.0
CONV = {"front_end": "conv", "conv_kernel": 32, "conv_stride": 16, "hidden_size": 64}
MINGRU = {"local_layer": "mingru"}

PARTS = {
    modeling.CSCConvFrontEnd: "front end",
    modeling.CSCSTFTFrontEnd: "front end",
    modeling.CSCLocalRecurrence: "local recurrence",
    modeling.CSCGlobalAttention: "global attention",
    modeling.CSCConvDecoder: "decoder",
    modeling.CSCSTFTDecoder: "decoder",
}


@dataclass(frozen=True)
class Variant:
    """What is trained, and how.

    Args:
        name: Heading of the row.
        config: Configuration of the model.
        dtype: Type for autocast; with float32 there is no autocast.
        num_identities: Identities in the batch (`make_batch`).
        device: "cpu" or "cuda".
    """

    name: str
    config: CSCConfig
    dtype: torch.dtype = torch.float32
    num_identities: int = 12
    device: str = "cpu"

    @property
    def num_mixtures(self) -> int:
        return 2 * self.num_identities


@dataclass
class Row:
    """What was measured of a variant: seconds of a step, of shape (rounds,), its floating-point operations, their rate
    as a share of a matrix product's, of shape (rounds,), and the share of each part in the time."""

    parameters: int
    seconds: np.ndarray
    flops: int
    share: np.ndarray
    parts: dict[str, float]


def make_batch(num_identities: int, length: float) -> dict[str, torch.Tensor]:
    """Mixtures of two, noise of `length` seconds each. An identity is the target of two, with different interferers,
    as `csc_hf.data.mixing` has it."""
    target, observation = np.divmod(np.arange(2 * num_identities), 2)
    interferer = (target + observation + 1) % num_identities
    generator = torch.Generator().manual_seed(0)
    sources = torch.randn(2 * num_identities, 2, round(length * SAMPLING_RATE), generator=generator)
    return {
        "input_values": sources.sum(dim=1),
        "source_values": sources,
        "speaker_ids": torch.from_numpy(np.stack([target, interferer], axis=1)),
    }


def make_step(variant: Variant, length: float) -> tuple[CSCForPreTraining, Callable[[], None]]:
    """A model and a function that trains it once on mixtures of `length` seconds: forward, backward, AdamW."""
    model = CSCForPreTraining(variant.config).to(variant.device)
    optimizer = torch.optim.AdamW(model.parameters())
    batch = make_batch(variant.num_identities, length)
    batch = {name: tensor.to(variant.device) for name, tensor in batch.items()}

    def step() -> None:
        with torch.autocast(variant.device, variant.dtype, enabled=variant.dtype != torch.float32):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if variant.device == "cuda":
            torch.cuda.synchronize()

    return model, step


def make_product(dtype: torch.dtype, device: str) -> tuple[Callable[[], None], int]:
    """A function that multiplies two square matrices, and its floating-point operations."""
    size = 2048 if device == "cpu" else 8192
    matrix = torch.randn(size, size, device=device).to(dtype)

    def product() -> None:
        matrix @ matrix
        if device == "cuda":
            torch.cuda.synchronize()

    return product, 2 * size**3


def shares_of_parts(model: CSCForPreTraining, step: Callable[[], None]) -> dict[str, float]:
    """Share of each part in the time of a step, and of the rest: segments, slots, pooling, the losses
    with the cross-attention, the optimizer. The front end's input needs no gradient: the end of its backward pass is
    not seen and counts as rest."""
    marks, begun = defaultdict(list), {}
    now, between = (_gpu_now, _gpu_between) if next(model.parameters()).is_cuda else (time.perf_counter, _between)

    def begin(name, *_):
        begun[name] = now()

    def end(name, *_):
        marks[name].append((begun[name], now()))

    handles = []
    for module in model.modules():
        if type(module) in PARTS:
            name = PARTS[type(module)]
            start, stop = functools.partial(begin, name), functools.partial(end, name)
            handles += [module.register_forward_pre_hook(start), module.register_forward_hook(stop)]
            if name != "front end":
                handles.append(module.register_full_backward_pre_hook(start))
                handles.append(module.register_full_backward_hook(stop))
    for _ in range(3):
        begin("step")
        step()
        end("step")
    for handle in handles:
        handle.remove()
    seconds = {name: sum(between(*pair) for pair in pairs) for name, pairs in marks.items()}
    total = seconds.pop("step")
    return {name: value / total for name, value in seconds.items()} | {"the rest": 1 - sum(seconds.values()) / total}


def _between(start: float, end: float) -> float:
    return end - start


def _gpu_now() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _gpu_between(start: torch.cuda.Event, end: torch.cuda.Event) -> float:
    end.synchronize()
    return start.elapsed_time(end) / 1000


def measure(variants: Sequence[Variant], length: float, rounds: int) -> dict[str, Row]:
    """The row of each variant, by its name; steps and matrix products interleaved. Memory as `examples/pretrain.py`
    keeps it."""
    keep_freed_memory()
    models, steps, products = {}, {}, {}
    for variant in variants:
        models[variant.name], steps[variant.name] = make_step(variant, length)
        products[variant.dtype] = make_product(variant.dtype, variant.device)
    product_steps = {str(dtype): product for dtype, (product, _) in products.items()}
    seconds = interleave(steps | product_steps, rounds)
    rows = {}
    for variant in variants:
        step, taken = steps[variant.name], seconds[variant.name]
        flops = 2 * multiply_accumulates(step)
        ceiling = products[variant.dtype][1] / seconds[str(variant.dtype)]
        rows[variant.name] = Row(
            parameters(models[variant.name]),
            taken,
            flops,
            flops / taken / ceiling,
            shares_of_parts(models[variant.name], step),
        )
    return rows


def show(variants: Sequence[Variant], rows: dict[str, Row], length: float) -> str:
    """The table of the steps and that of their parts."""
    header = ["", "parameters", "seconds", "audio s/s", "GFLOP", "GFLOP/s", "share of the matrix product's"]
    steps, parts = [], []
    names = list(dict.fromkeys([*PARTS.values(), "the rest"]))
    for variant in variants:
        row = rows[variant.name]
        steps.append(
            [
                variant.name,
                f"{row.parameters / 1e6:.2f} M",
                spread(row.seconds, 3),
                f"{variant.num_mixtures * length / np.median(row.seconds):.1f}",
                f"{row.flops / 1e9:.1f}",
                f"{row.flops / 1e9 / np.median(row.seconds):.1f}",
                f"{100 * np.median(row.share):.0f} %",
            ]
        )
        parts.append([variant.name, *(f"{100 * row.parts[name]:.0f} %" for name in names)])
    return f"{table(header, steps)}\n\n{table(['share of the time', *names], parts)}"


def pretraining(rounds: int, threads: int, seconds=lambda length: length) -> Section:
    """The step on the CPU."""
    length = seconds(CROP_SECONDS)
    eager = {"attn_implementation": "eager"}  # takes less time in bfloat16 here than PyTorch's fused attention
    variants = [
        Variant("`small`, float32", CSCConfig.small()),
        Variant("`small`, bfloat16", CSCConfig.small(**eager), torch.bfloat16),
        Variant("`small`, minGRU, bfloat16", CSCConfig.small(**MINGRU, **eager), torch.bfloat16),
        Variant("conv 32/16, D=64, float32", CSCConfig.small_v1(**CONV)),
        Variant("conv 32/16, D=64, bfloat16", CSCConfig.small_v1(**CONV, **eager), torch.bfloat16),
        Variant("conv, minGRU, bfloat16", CSCConfig.small_v1(**CONV, **MINGRU, **eager), torch.bfloat16),
    ]
    rows = alone(measure, variants, length, rounds, threads=threads)
    summary = []
    for variant in variants:
        row = rows[variant.name]
        measured = (
            f"{variant.num_mixtures * length / np.median(row.seconds):.1f} audio s/s, "
            f"{100 * np.median(row.share):.0f} % of the matrix product's rate"
        )
        summary.append((f"pre-training step, {variant.name}", measured))
    text = (
        f"Forward, backward, AdamW on 24 mixtures of {length:g} s with {threads} threads: `small`, and `small` with "
        'the conv front end 32/16 and D=64; minGRU is `local_layer="mingru"`. bfloat16 is autocast, with eager '
        "attention. GFLOP are those of matrix products, convolutions, LSTMs and attention; their rate is compared "
        "with that of a product of matrices of 2048 × 2048 in the same type, measured in the same rounds.\n\n"
    )
    return Section("Pre-training step", summary, text + show(variants, rows, length))


def gpu(rounds: int, threads: int, seconds=lambda length: length) -> Section:
    """The step on a GPU; there must be one."""
    length = seconds(CROP_SECONDS)
    variants = [
        Variant(f"`{name}`, {2 * num_identities} mixtures", config, torch.bfloat16, num_identities, "cuda")
        for name, config in (("small", CSCConfig.small()), ("base", CSCConfig.base()))
        for num_identities in (12, 96)
    ]
    rows = alone(measure, variants, length, rounds, threads=threads)
    summary = []
    for variant in variants:
        row = rows[variant.name]
        rate = variant.num_mixtures * length / np.median(row.seconds)
        measured = f"{rate:.0f} audio s/s, {100 * np.median(row.share):.1f} % of the matrix product's rate"
        summary.append((f"pre-training step on a GPU, {variant.name}", measured))
    text = (
        f"{torch.cuda.get_device_name()}, bfloat16 autocast, mixtures of {length:g} s, the data on the GPU. The "
        "matrix product is of 8192 × 8192.\n\n"
    )
    return Section("Pre-training step on a GPU", summary, text + show(variants, rows, length))
