# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Runs the benchmarks and writes benchmarks/README.md.

    pip install -e ".[bench]" && pip install --no-deps asteroid resemblyzer
    python benchmarks/run_all.py
    python benchmarks/run_all.py --only trunk separation --output speed.md

Asteroid and Resemblyzer are installed without their requirements, which contradict ours or have to be compiled. The
row of a peer that is not installed says how to install it. Linux only.
"""

import argparse
import importlib.metadata
import os
import platform
import shlex
import sys
from datetime import date
from pathlib import Path

from against_peers import embedding, separation, trunk
from growth import growth
from measure import table
from pretraining_step import gpu, pretraining
from torch.cuda import is_available as has_gpu

from csc_hf.files import escape_unprintable

SECTIONS = {section.__name__: section for section in (trunk, embedding, separation, growth, pretraining, gpu)}
OF_ALL_CORES = (pretraining, gpu)
PACKAGES = "torch torchaudio transformers numpy asteroid speechbrain resemblyzer librosa"


def machine() -> list[str]:
    """The machine and the versions that the figures depend on, as items of a list."""
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    versions = [f"Python {platform.python_version()}"]
    for package in PACKAGES.split():
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} not installed")
    return [
        f"- Machine: {cpu.split(':')[1].strip()}, {os.cpu_count()} cores, {memory:.0f} GB; load average before: "
        f"{os.getloadavg()[0]:.1f}",
        f"- Versions: {', '.join(versions)}",
    ]


def main() -> None:
    escape_unprintable()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11, help="rounds, in each of which every model runs once")
    parser.add_argument("--threads", type=int, help="default: one, and all cores for pre-training steps")
    default = [name for name in SECTIONS if name != gpu.__name__ or has_gpu()]
    parser.add_argument(
        "--only", nargs="+", choices=SECTIONS, default=default, metavar="NAME", help=f"some of {', '.join(SECTIONS)}"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="factor on all lengths of audio; small for a trial")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "README.md", help="file to write")
    args = parser.parse_args()

    head = [
        "# Benchmarks",
        "Written by the command below: edit the scripts, not this file. In each round, all models run in turn, in one "
        "process, with the same threads, on the same audio. Ratios compare times of the same round: median "
        "(quartiles). Peak memory is the growth of a process that does nothing else, without the code of libraries. "
        "Weights are random: these are figures of speed only.",
        "\n".join(
            [
                f"- Command: `{shlex.join(['python', 'benchmarks/run_all.py', *sys.argv[1:]])}`, {date.today()}; "
                f"{args.rounds} rounds",
                *machine(),
            ]
        ),
    ]
    sections = []
    for name in args.only:
        benchmark = SECTIONS[name]
        threads = args.threads or (os.cpu_count() if benchmark in OF_ALL_CORES else 1)
        print(f"{name}, {threads} threads ...", flush=True)
        section = benchmark(args.rounds, threads, lambda length: length * args.scale)
        print(table(["what", "measured"], section.summary), flush=True)
        sections.append(section)
    summary = table(["what", "measured"], [row for section in sections for row in section.summary])
    bodies = [f"## {section.title}\n\n{section.text}" for section in sections]
    args.output.write_text("\n\n".join([*head, summary, *bodies]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
