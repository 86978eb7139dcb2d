# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""What two processes compute together is what one computes alone."""

import itertools
import os
import socket
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin, PartialState
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import InitProcessGroupKwargs
from pretraining_runs import LAUNCH, forked, launch, reset_accelerate
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from csc_hf import CSCConfig, CSCForPreTraining

CONFIGS = Path(__file__).resolve().parents[2] / "examples" / "accelerate_configs"
LEARNING_RATE = 0.01
LOSSES = ["loss", "separation_loss", "contrastive_loss", "activity_loss", "mutual_information", "contrastive_accuracy"]


def new_model(**options):
    torch.manual_seed(0)
    return CSCForPreTraining(
        CSCConfig.tiny(hidden_dropout=0.0, attention_dropout=0.0, initializer_range=0.3, **options)
    ).train()


def mixtures(seed, first_speaker, num_mixtures=6, num_samples=3000, num_alone=0):
    """Mixtures of four speakers, each pair in one of them; in the last `num_alone`, one speaks alone."""
    pairs = torch.tensor(list(itertools.combinations(range(4), 2)))[:num_mixtures] + first_speaker
    sources = torch.randn(num_mixtures, 2, num_samples, generator=torch.Generator().manual_seed(seed))
    sources[num_mixtures - num_alone :, 1] = 0
    return {"input_values": sources.sum(1), "source_values": sources, "speaker_ids": pairs}


def nobody(batch):
    return batch | {"speaker_ids": torch.full_like(batch["speaker_ids"], -100)}


CASES = {  # the batch of each process
    "other speakers": [mixtures(0, 0, num_alone=1), mixtures(1, 4, num_alone=3)],
    "other shapes": [mixtures(0, 0), mixtures(1, 2, num_mixtures=4, num_samples=4000)],  # and two speakers in common
    "nobody in one": [mixtures(0, 0), nobody(mixtures(1, 4))],
    "nobody": [nobody(mixtures(0, 0)), nobody(mixtures(1, 4))],
}
OPTIONS = {
    "other shapes": {"activity_loss_weight": 0.0}
}  # a mean over mixtures, of which the processes have not as many


def together(batches):
    """The batches as one, padded."""
    num_samples = max(batch["input_values"].shape[1] for batch in batches)
    lengths = torch.cat([torch.full((len(b["input_values"]),), b["input_values"].shape[1]) for b in batches])

    def pad(values):
        return torch.nn.functional.pad(values, (0, num_samples - values.shape[-1]))

    return {
        "input_values": torch.cat([pad(batch["input_values"]) for batch in batches]),
        "attention_mask": (torch.arange(num_samples) < lengths[:, None]).long(),
        "source_values": torch.cat([pad(batch["source_values"]) for batch in batches]),
        "speaker_ids": torch.cat([batch["speaker_ids"] for batch in batches]),
    }


def measure(model, batch):
    """Losses, global speaker vectors and gradients."""
    output = model(**batch)
    output.loss.backward()
    found = {name: output[name].detach() for name in [*LOSSES, "global_speaker_vectors"]}
    gradients = {name.removeprefix("module."): parameter.grad for name, parameter in model.named_parameters()}
    return found | {"gradients": gradients}


def work(folder):
    """What each process does."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )
    patience = InitProcessGroupKwargs(timeout=timedelta(seconds=60))  # a call that the other does not make is an error
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin, kwargs_handlers=[patience])
    rank = accelerator.process_index
    results = {}

    for case, batches in CASES.items():
        model = DistributedDataParallel(new_model(**OPTIONS.get(case, {})))
        measure(model, batches[rank])
        model.zero_grad()
        results[case] = measure(model, batches[rank])  # DDP complains of parameters without gradient one step later
    model = DistributedDataParallel(new_model())
    with torch.autocast("cpu", torch.bfloat16):
        results["bfloat16"] = measure(model, CASES["other speakers"][rank])

    if rank == 0:  # the other one waits
        with torch.no_grad():
            results["alone"] = new_model().eval()(**CASES["other speakers"][0])
    distributed.barrier()

    # Accelerate has no FSDP on CPUs, but all that it lacks is to call it so.
    for state in (PartialState(), accelerator.state):
        state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    model = new_model()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=LEARNING_RATE))
    loss = model(**CASES["other speakers"][rank]).loss
    accelerator.backward(loss)
    optimizer.step()
    results["sharded"] = {
        "loss": loss.detach(),
        "blocks": [name for name, module in model.named_modules() if type(module).__name__ == "FSDPCSCBlock"],
        "weights": accelerator.get_state_dict(model),
    }
    torch.save(results, folder / f"{rank}.pt")
    accelerator.end_training()


def work_as(rank, port, folder):
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    reset_accelerate()
    work(folder)


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("distributed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    started = [forked(work_as, rank, port, folder) for rank in "01"]
    for process in started:
        process.join(300)
        process.kill()
    assert [process.exitcode for process in started] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


PROGRAM = """
from accelerate import PartialState
from torch import distributed
state = PartialState(cpu=True)
print(f"process {state.process_index} of {state.num_processes}, {distributed.get_backend()}\\n", end="")
state.destroy_process_group()
"""


def test_the_configuration_for_cpus_starts_two_processes(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    printed = launch([*LAUNCH, "--config_file", str(CONFIGS / "cpu_2_processes.yaml"), str(tmp_path / "program.py")])
    assert {"process 0 of 2, gloo", "process 1 of 2, gloo"} <= set(printed.splitlines())


@pytest.mark.parametrize("case", CASES)
def test_two_processes_compute_what_one_does(processes, case):
    expected = measure(new_model(**OPTIONS.get(case, {})), together(CASES[case]))
    found = [process[case] for process in processes]
    for name in LOSSES if case not in OPTIONS else LOSSES[1:3] + LOSSES[4:]:
        mean = (found[0][name] + found[1][name]) / 2
        torch.testing.assert_close(mean, expected[name], atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    vectors = torch.cat([process["global_speaker_vectors"] for process in found])
    torch.testing.assert_close(vectors, expected["global_speaker_vectors"], atol=1e-5, rtol=0)
    for name, gradient in expected["gradients"].items():
        for process in found:  # DDP has averaged them
            actual = process["gradients"][name]
            torch.testing.assert_close(actual, gradient, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_the_contrast_is_single_precision_under_autocast(processes):
    with torch.autocast("cpu", torch.bfloat16):
        expected = measure(new_model(), together(CASES["other speakers"]))
    for name in LOSSES:
        found = [process["bfloat16"][name] for process in processes]
        assert all(loss.dtype == torch.float32 for loss in found)
        torch.testing.assert_close(sum(found) / 2, expected[name], atol=0.02, rtol=0.02)


def test_one_process_evaluates_while_the_other_waits(processes):
    with torch.no_grad():
        expected = new_model().eval()(**CASES["other speakers"][0])
    for name in LOSSES:
        torch.testing.assert_close(processes[0]["alone"][name], expected[name])


def test_sharded_parameters_take_the_same_step(processes):
    model = new_model()
    initial = {name: weight.clone() for name, weight in model.state_dict().items()}
    expected = measure(model, together(CASES["other speakers"]))
    loss = sum(process["sharded"]["loss"] for process in processes) / 2
    torch.testing.assert_close(loss, expected["loss"], atol=1e-5, rtol=1e-5)
    assert len(processes[0]["sharded"]["blocks"]) == 3  # tiny: one in the trunk, one in each branch
    weights = processes[0]["sharded"]["weights"]
    assert weights.keys() == initial.keys() and not processes[1]["sharded"]["weights"]
    for name, gradient in expected["gradients"].items():
        stepped = initial[name] - LEARNING_RATE * gradient
        torch.testing.assert_close(weights[name], stepped, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_knows_every_field_of_the_configurations(path):
    config = load_config_from_file(str(path))  # refuses unknown fields,
    assert set(config.fsdp_config or {}) <= set(vars(launch_command_parser().parse_args(["script.py"])))  # but in here
