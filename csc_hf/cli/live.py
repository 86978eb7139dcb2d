# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""`csc-hf live`."""

import contextlib
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from .models import check_model, load_model
from .options import Json, Model, Speakers, finite
from .output import counted, print_json, print_row
from .recordings import STDIN

BLOCK_SECONDS = 0.1


def live(
    source: Annotated[
        str | None,
        typer.Argument(metavar="-", help="- reads standard input, raw PCM or an audio file, not the microphone."),
    ] = None,
    rate: Annotated[int, typer.Option("--rate", metavar="HZ", min=1000, help="Sampling rate of the raw PCM.")] = 16000,
    latency: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", callback=finite, help="Most seconds between speech and its line. More is more accurate."
        ),
    ] = 2.0,
    max_speakers: Speakers = None,
    store: Annotated[
        Path | None,
        typer.Option("--store", "-s", metavar="FILE", help="Store of voices: known people get their names."),
    ] = None,
    as_json: Json = False,
    model: Model = None,
) -> None:
    """
    Tell who speaks while they speak, until Ctrl-C or the end of the input.

    ```
    csc-hf live --store voices.safetensors
    arecord -t raw -f S16_LE -r 16000 -c 1 | csc-hf live -
    ffmpeg -i stream.mp3 -f s16le -ac 1 -ar 16000 - | csc-hf live - --json
    ```

    Without `-`, the microphone is heard, by the package sounddevice. With it, standard input is signed 16-bit
    little-endian mono PCM, or an audio file that can be decoded while it comes in (WAV, FLAC, OGG, MP3, …), whose
    header then has the rate. A line is printed when a turn is over. What was printed stays true: nobody gets another
    name later.

    `--json` prints pieces of turns, an object each with `start`, `end`, `speaker` and `score`, as soon as they are
    final. A piece that begins where the last one of the same speaker has ended goes on with their turn.
    """
    if source not in (None, STDIN):
        raise ValueError(f"{source!r} is not -: live hears the microphone or standard input; files are for diarize")
    if source == STDIN and sys.stdin.isatty():
        raise ValueError("'-' reads audio from standard input, which is a terminal: pipe audio into it")
    name = check_model(model)
    from ..audio import resample_blocks
    from ..configuration_csc import CSCConfig
    from ..diarization import DiarizationSettings, check_frame_activity
    from ..streaming import LiveDiarizer, latency_bounds
    from .store import load_voices

    config = CSCConfig.from_pretrained(name)
    check_frame_activity(config)
    least, most = latency_bounds(config, (DiarizationSettings.load(config) or DiarizationSettings()).chunk_seconds)
    if not least <= latency <= most:
        raise ValueError(f"--latency {latency:g}: give {least:g} to {most:g} seconds with this model")
    known = None if store is None else load_voices(store)
    if known is not None and max_speakers is not None and max_speakers < len(known.voices):
        raise ValueError(
            f"--max-speakers {max_speakers}: the store holds {counted(known.voices, 'voice')}, who are among them: "
            "give more, or a smaller store"
        )
    network = load_model(name)
    enrolled = {}
    if known is not None and store is not None:
        known.check_model(store, network, name)
        enrolled = known.embeddings
    diarizer = LiveDiarizer(network, latency, enrolled, max_speakers=max_speakers)
    with contextlib.ExitStack() as stack:
        if source == STDIN:
            rate, blocks = piped(rate, network.config.sampling_rate)
        else:
            rate, blocks = stack.enter_context(microphone())
        tell: Callable[..., None] = print_pieces if as_json else Turns(diarizer)
        with contextlib.suppress(KeyboardInterrupt):
            if rate != network.config.sampling_rate:
                blocks = resample_blocks(blocks, rate, network.config.sampling_rate)
            for block in blocks:
                tell(diarizer.push(block))
    tell(diarizer.finish(), is_end=True)


def print_pieces(pieces: Sequence[Any], is_end: bool = False) -> None:
    for piece in pieces:
        print_json(asdict(piece))


class Turns:
    """Prints turns when they are over. Who speaks meanwhile stands on standard error, where that is a terminal."""

    def __init__(self, diarizer: Any):
        self._diarizer = diarizer
        self._held: list[Any] = []  # turns that may go on
        self._status = sys.stderr.isatty()
        print_row("start", "end", "speaker", "score")

    def __call__(self, pieces: Sequence[Any], is_end: bool = False) -> None:
        from ..streaming import join_turns

        turns = join_turns([*self._held, *pieces])
        seconds = self._diarizer.seconds
        self._held = [turn for turn in turns if turn.end >= seconds and not is_end]
        if self._status:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        for turn in turns:
            if turn not in self._held:
                print_row(f"{turn.start:.2f}", f"{turn.end:.2f}", turn.speaker, f"{turn.score:.2f}")
        if self._status and not is_end:
            names = ", ".join(sorted({turn.speaker for turn in self._held}))
            print(f"{seconds:.0f} s: {names or 'nobody'}", end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def microphone() -> Iterator[tuple[int, Iterator[Any]]]:
    """The rate of the microphone, and what it hears, as float32 (samples,) without an end.

    Raises:
        ValueError: there is none, or it cannot be used.
    """
    remedy = "pipe raw PCM into csc-hf live -"
    try:
        import sounddevice
    except ModuleNotFoundError as error:
        raise ValueError(f"sounddevice is not installed: pip install 'csc-hf[live]', or {remedy}") from error
    except OSError as error:  # it looks for a library of the system
        raise ValueError(
            f"the microphone needs PortAudio (apt install libportaudio2): {error}; or {remedy}"
        ) from error
    try:
        rate = int(sounddevice.query_devices(kind="input")["default_samplerate"])
        size = round(BLOCK_SECONDS * rate)
        with sounddevice.InputStream(rate, size, channels=1, dtype="float32") as stream:
            yield rate, (stream.read(size)[0][:, 0] for _ in iter(int, 1))
    except sounddevice.PortAudioError as error:
        raise ValueError(
            f"no microphone can be used ({error}): choose one in the system's settings, or {remedy}"
        ) from error


def piped(rate: int, sampling_rate: int) -> tuple[int, Iterator[Any]]:
    """The rate of what standard input holds, and float32 blocks (samples,) of it. Raw PCM has the given rate; what is
    encoded is resampled to `sampling_rate`."""
    from ..audio import Begun, encoded_format, read_live
    from ..streaming import pcm_blocks

    stream = cast(io.BufferedReader, sys.stdin.buffer)
    start = b""
    while len(start) < 2048 and (read := stream.read1(2048 - len(start))):
        start += read
    if encoded_format(start) is not None:
        return sampling_rate, read_live(stream, start, sampling_rate, seconds=BLOCK_SECONDS)
    return rate, pcm_blocks(Begun(stream, start), rate, BLOCK_SECONDS)
