# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""The command `csc-hf`: parses, calls the rest of the package, prints.

Each family of commands has a module; this one puts them together. Nothing here imports torch before a command runs,
so that `--help` answers at once. `csc_hf_cli.py` starts it.
"""

from typing import Annotated

import typer
<<<<<<< HEAD
=======
import typer.core

from .recordings import STDIN, Recording, find

SAME, DIFFERENT, ERROR, UNDECIDED, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 3, 130, 141
"""Exit statuses."""

MODEL_VARIABLE = "CSC_HF_MODEL"
SHIPPED_MODEL = "csc-small"


# --- errors ----------------------------------------------------------------------------------------------------------


def fail(message: str) -> None:
    """Print an error as one line on standard error."""
    print("csc-hf:", printable(" ".join(message.split())), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    r"""Text without characters that move the cursor of a terminal or worse, which names of files can hold: \x1b."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def explain(error: Exception) -> str:
    """The first line of what an error says."""
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        extra = "eval" if error.name in ("datasets", "evaluate", "matplotlib", "tqdm") else "audio"
        return f"{error.name} is not installed: pip install 'csc-hf[{extra}]'"
    if hasattr(error, "format_message"):  # of the command line
        return error.format_message()
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename!r}: {error.strerror}" if error.filename else error.strerror
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return (
        first
        if isinstance(error, ValueError | OSError | ImportError) and first
        else f"{type(error).__name__}: {first}"
    )


class Commands(typer.core.TyperGroup):
    """The group of commands. Whatever happens, it ends with a line on standard error and an exit status."""

    def main(self, *args: Any, **options: Any) -> Any:
        options["standalone_mode"] = False
        try:
            status = super().main(*args, **options)
            sys.stdout.flush()
        except (KeyboardInterrupt, typer.Abort):
            status = INTERRUPTED
        except Exception as error:
            if isinstance(error, BrokenPipeError):
                status = PIPE_CLOSED
            else:
                status = ERROR
                fail(explain(error))
            if isinstance(error, OSError):
                discard_output()
        sys.exit(status or 0)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:  # typer would exit with 1, which means different voices
            discard_output()
            raise typer.Exit(PIPE_CLOSED) from error


def discard_output() -> None:
    """Python flushes standard output once more as it ends, and would complain where that cannot be written."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        return
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
>>>>>>> safety

from .card import card
from .diarization import diarize
from .embedding import embed
from .errors import Commands
from .evaluation import evaluate
from .live import live
from .separation import extract, separate
from .voices import enrol, identify, verify

app = typer.Typer(
    cls=Commands,
    name="csc-hf",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def version(show: bool) -> None:
    if show:
        from csc_hf import __version__

        print(f"csc-hf {__version__}")
        raise typer.Exit


@app.callback()
def manual(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=version, is_eager=True)
    ] = False,
) -> None:
    """
    Who speaks, when others speak too: verify, enrol, identify, diarize and separate voices.

    ```
    csc-hf verify anna.wav meeting.wav        # is it the same voice?
    csc-hf enrol Anna anna1.wav anna2.wav --store voices.safetensors
    csc-hf identify calls/ --store voices.safetensors
    csc-hf diarize meeting.wav --rttm meeting.rttm
    arecord -t raw -f S16_LE -r 16000 | csc-hf live -
    csc-hf separate meeting.wav --out separated
    csc-hf extract meeting.wav --enrol anna.wav --out anna-only.wav
    ```

    **Recordings** are audio files of any length and sampling rate, folders that are searched for them, and glob
    patterns. A path that exists is a path, whatever its letters. `-` is standard input.

    **The model** is `--model`: a folder, or a name on the Hub. Without it, it is `$CSC_HF_MODEL`; else csc-small,
    from a clone of the repository or from the cache of the Hub.

    **Results** go to standard output: a table on a terminal, lines with tabs elsewhere, and JSON with `--json`, an
    object a line. Progress and errors go to standard error.

    **Exit status**: 0 done (`verify`: same voice), 1 different voices (`verify`) or no such voice (`extract`), 2 an
    error, 3 nothing decided (`verify` only), 130 interrupted, 141 nobody reads the output. Where one of several
    recordings cannot be used, the others are, and the status is 2.

    `csc-hf COMMAND --help` explains a command.
    """


<<<<<<< HEAD
for command in (embed, verify, enrol, identify, diarize, live, separate, extract):
    app.command()(command)
# argparse reads its options, as in examples/evaluate_verification.py.
passed_on = {"ignore_unknown_options": True, "allow_extra_args": True}
app.command(add_help_option=False, context_settings=passed_on)(evaluate)
app.command()(card)
=======
# --- options ---------------------------------------------------------------------------------------------------------


class Kind(StrEnum):
    """`csc_hf.evaluation.calibration.ENROLMENTS`, which cannot be imported here. A test compares the two."""

    mean = "mean"
    attention = "attention"


Model = Annotated[
    str | None, typer.Option("--model", "-m", metavar="MODEL", help="Folder of a CSC model, or its name on the Hub.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, an object a line.")]
Files = Annotated[list[str], typer.Argument(metavar="FILES", help="Files, folders, glob patterns, or -.")]
Store = Annotated[Path, typer.Option("--store", "-s", metavar="FILE", help="Store of voices, a .safetensors file.")]
Threshold = Annotated[
    float | None, typer.Option(help="Lowest score that counts as the same voice. Replaces the model's calibration.")
]
Condition = Annotated[
    str | None, typer.Option(help="Condition of the calibration to use, where the model has several.")
]
KIND_HELP = "How voices are compared: with the mean embedding of the enrolment, or by the trained cross-attention."


# --- what commands share ---------------------------------------------------------------------------------------------


def default_model() -> str:
    """The model that is used without `--model`.

    Raises:
        ValueError: There is none, or the cache has several.
    """
    if name := os.environ.get(MODEL_VARIABLE):
        return name
    for clone in (Path(__file__).parents[2], Path.cwd()):
        folder = clone / "model_cards" / SHIPPED_MODEL
        if (folder / "model.safetensors").is_file():
            return str(folder)
    from huggingface_hub.constants import HF_HUB_CACHE

    cached = sorted(Path(HF_HUB_CACHE).glob(f"models--*--{SHIPPED_MODEL}"))
    names = ["/".join(path.name.split("--")[1:]) for path in cached]
    if len(names) == 1:
        return names[0]
    if names:
        raise ValueError(f"the cache holds {', '.join(names)}: choose one by --model or ${MODEL_VARIABLE}")
    raise ValueError(
        f"no model: {SHIPPED_MODEL} is neither in a clone of the repository nor in the cache of the Hub. Give "
        f"--model FOLDER or --model USER/NAME, or set {MODEL_VARIABLE}"
    )


def keep_transformers_quiet() -> None:
    """Its warnings and progress bars would stand between the lines of the command."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def check_model(name: str | None) -> str:
    """The name of the model to load, which is a CSC model."""
    name = name or default_model()
    from ..configuration_csc import CSCConfig

    keep_transformers_quiet()
    if not Path(name).is_dir() and (Path(name).exists() or name.count("/") > 1 or name.startswith((".", "~", "/"))):
        raise ValueError(f"no folder {name!r} of a model: check the path")
    try:
        config, _ = CSCConfig.get_config_dict(name)
    except OSError as error:
        raise ValueError(f"cannot load a model from {name!r}: {explain(error)}") from error
    if not config:
        raise ValueError(f"cannot load a model from {name!r}: it holds no config.json")
    if config.get("model_type") != CSCConfig.model_type:
        raise ValueError(f"{name!r} is no CSC model but of type {config.get('model_type')!r}: choose another --model")
    return name


def load_pipeline(task: str, name: str, **options: Any) -> Any:
    import transformers

    from .. import pipelines  # noqa: F401 (registers the tasks)

    create: Any = transformers.pipeline  # its types know the tasks of Transformers only
    return create(task, model=name, **options)


@contextlib.contextmanager
def opened(*arguments: Sequence[str]) -> Iterator[list[list[Recording]]]:
    """The recordings that each list of arguments names. Within, standard input is a file."""
    with tempfile.TemporaryDirectory(prefix="csc-hf-") as folder:
        if sum(argument == STDIN for group in arguments for argument in group) > 1:
            raise ValueError("'-', standard input, is given twice: only one recording can come from it")
        found = []
        for number, group in enumerate(arguments):
            Path(folder, str(number)).mkdir()
            found.append(find(group, Path(folder, str(number))))
        yield found


def seconds_of(recording: Recording) -> float | None:
    """What the header says of the length."""
    import soundfile

    try:
        return soundfile.info(str(recording.path)).duration
    except (soundfile.SoundFileError, TypeError):
        return None


class Progress:
    """A bar on standard error, where that is a terminal: how much of the audio is done, and when it all will be.

    Args:
        what: what is done, for the label.
        model: whose forward passes, a chunk of audio each, move the bar.
        files: all recordings.
    """

    def __init__(self, what: str, model: Any, files: Sequence[Recording]):
        self.files = files
        self._is_shown = sys.stderr.isatty()
        if not self._is_shown:
            return
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        from ..long_audio import CHUNK_SECONDS, OVERLAP_SECONDS

        self._step = CHUNK_SECONDS - OVERLAP_SECONDS
        self._lengths = {recording: seconds_of(recording) or self._step for recording in files}
        self._done = 0.0
        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
        self._bars = Bars(
            *columns,
            console=Console(stderr=True),
            transient=True,
            # Where both are on the terminal, results would tear the bar. Elsewhere, rich would print them on standard
            # error as well.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task = self._bars.add_task(what, total=sum(self._lengths.values()))
        self._model = model.base_model

    def __enter__(self) -> "Progress":
        if self._is_shown:
            self._hook = self._model.register_forward_hook(lambda *_: self._bars.advance(self._task, self._step))
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_shown:
            self._bars.stop()
            self._hook.remove()

    def finish(self, recording: Recording) -> None:
        """Move the bar to the end of a recording."""
        if self._is_shown:
            self._done += self._lengths[recording]
            self._bars.update(self._task, completed=self._done)


def for_each(progress: Progress, work: Callable[[Recording], None]) -> int:
    """Work on each recording. Those that cannot be used are told of, and the others done; returns the exit status."""
    status = 0
    with progress:
        for recording in progress.files:
            try:
                work(recording)
            except BrokenPipeError:
                raise
            except (ValueError, OSError, RuntimeError) as error:
                fail(recording.explain(error))
                status = ERROR
            progress.finish(recording)
    return status


@contextlib.contextmanager
def by_name(*groups: Sequence[Recording]) -> Iterator[None]:
    """Within, errors call recordings by their names."""
    try:
        yield
    except ValueError as error:
        message = str(error)
        for recording in (recording for group in groups for recording in group):
            message = recording.rename(message)
        raise ValueError(message) from error


class Table:
    """Rows that are printed at the end on a terminal, and elsewhere as they come, with tabs."""

    def __init__(self, *columns: str):
        self._rows: list[tuple[str, ...]] = []
        self._columns = columns
        if not sys.stdout.isatty():
            print("\t".join(columns))

    def add(self, *cells: Any) -> None:
        texts = tuple("-" if c is None else f"{c:.2f}" if isinstance(c, float) else printable(str(c)) for c in cells)
        if sys.stdout.isatty():
            self._rows.append(texts)
        else:
            print("\t".join(texts), flush=True)

    def __enter__(self) -> "Table":
        return self

    def __exit__(self, *_: object) -> None:
        if self._rows:
            from rich.console import Console
            from rich.table import Table as RichTable
            from rich.text import Text

            table = RichTable(*self._columns, box=None)
            for row in self._rows:
                table.add_row(*map(Text, row))
            Console().print(table)


def print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


def yes_no(decision: bool | None) -> str | None:
    return None if decision is None else "yes" if decision else "no"


# --- commands --------------------------------------------------------------------------------------------------------


@app.command()
def embed(
    files: Files,
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write embeddings to a .safetensors file; - for standard output."),
    ] = None,
    as_json: Json = False,
    model: Model = None,
) -> int:
    """
    Embed the voices of recordings.

    Each recording gives an embedding and an activity for each slot of the model. A slot holds one voice; one whose
    activity (a logit) is below zero holds nobody, and its embedding means nothing. Embeddings are unit vectors: their
    scalar product is a cosine.

    ```
    csc-hf embed calls/ --out calls.safetensors
    csc-hf embed anna.wav --json
    sox anna.wav -t wav - | csc-hf embed - --json
    ```

    The safetensors file holds `embeddings` (recordings, slots, size) and `activity` (recordings, slots), with the
    recordings' names as the JSON list `files` in its metadata. Without `--out` and `--json`, the activities are shown.
    """
    if out is not None:
        check_stdout(out)
    if out == STDIN and as_json:
        raise ValueError("--json and --out - would both write to standard output: choose one")
    with opened(files) as (found,):
        name = check_model(model)
        import safetensors.torch
        import torch

        from ..long_audio import embed as embed_audio
        from ..modeling_csc import CSCModel
        from .store import fingerprint, write_aside

        encoder = CSCModel.from_pretrained(name).eval()
        done: list[str] = []
        values: list[Any] = []
        quiet = out is not None or as_json
        with contextlib.ExitStack() as stack:
            columns = [f"slot {slot + 1}" for slot in range(encoder.config.num_sources)]
            table = None if quiet else stack.enter_context(Table("file", *columns))

            def work(recording: Recording) -> None:
                audio = embed_audio(encoder, recording.path)
                if out is not None:
                    done.append(recording.name)
                    values.append(audio)
                elif as_json:
                    found = {"embeddings": audio.embeddings.tolist(), "activity": audio.activity.tolist()}
                    print_json({"file": recording.name, **found})
                if table is not None:
                    table.add(recording.name, *audio.activity.tolist())

            status = for_each(Progress("embedding", encoder, found), work)
        if values and out is not None:
            tensors = {
                "embeddings": torch.stack([torch.from_numpy(audio.embeddings) for audio in values]),
                "activity": torch.stack([torch.from_numpy(audio.activity) for audio in values]),
            }
            metadata = {"files": json.dumps(done), "model": name, "fingerprint": fingerprint(encoder)}
            content = safetensors.torch.save(tensors, metadata)
            if out == STDIN:
                sys.stdout.buffer.write(content)
            else:
                write_aside(Path(out), content)
                if as_json:
                    print_json({"out": out, "files": done})
    return status


@app.command()
def verify(
    enrolment: Annotated[str, typer.Argument(metavar="A", help="Recording of a voice; several: a folder or pattern.")],
    test: Annotated[str, typer.Argument(metavar="B", help="Recording in which the voice may speak; - is stdin.")],
    kind: Annotated[Kind, typer.Option("--enrolment", help=KIND_HELP)] = Kind.mean,
    threshold: Threshold = None,
    condition: Condition = None,
    as_json: Json = False,
    model: Model = None,
) -> int:
    """
    Tell whether the voice of A speaks in B, even if others speak too.

    ```
    csc-hf verify anna.wav meeting.wav
    csc-hf verify anna/ meeting.wav --enrolment attention --json
    csc-hf verify anna.wav call.wav && echo "It is Anna."
    ```

    The score is a cosine, the llr a log-likelihood ratio (natural logarithm) by the calibration of the model. A
    decision holds for conditions like those of its calibration. `--json` prints one object with `score`, `llr`,
    `decision`, `threshold`, `condition`, `silent` and `several_speakers`.

    Exit status: 0 same voice, 1 different voices, 2 an error, 3 nothing decided: a recording is silent, or there
    is neither calibration nor threshold.
    """
    with opened([enrolment], [test]) as (enrolled, tests):
        if len(tests) > 1:
            raise ValueError(f"B, {test!r}, holds {len(tests)} recordings: give one")
        pipe = load_pipeline(
            "speaker-verification",
            check_model(model),
            enrolment=kind.value,
            threshold=threshold,
            condition=condition,
        )
        with by_name(enrolled, tests), Progress("verifying", pipe.model, [*enrolled, *tests]):
            result = pipe([str(recording.path) for recording in enrolled], str(tests[0].path))
    decision = result["decision"]
    if as_json:
        print_json(result)
    else:
        verdict = {True: "same voice", False: "different voices", None: "undecided"}[decision]
        details = [f"score {result['score']:.2f}"]
        if result["llr"] is not None:
            details.append(f"llr {result['llr']:.1f}")
        if result["threshold"] is not None:
            details.append(f"threshold {result['threshold']:.2f}")
        if result["condition"] is not None:
            details.append(f"condition {result['condition']}")
        if result["silent"]:
            details.append("a recording is silent")
        if result["several_speakers"]:
            details.append(f"several voices in {tests[0].name}")
        print(f"{verdict}: {', '.join(details)}")
    return {True: SAME, False: DIFFERENT, None: UNDECIDED}[decision]


@app.command()
def enrol(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the voice.")],
    files: Files,
    store: Store,
    kind: Annotated[
        Kind | None, typer.Option("--enrolment", help=f"{KIND_HELP} A store has one kind: mean, if it is new.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a voice of that name.")] = False,
    as_json: Json = False,
    model: Model = None,
) -> None:
    """
    Enrol a voice: keep it in a store, by name.

    ```
    csc-hf enrol Anna anna1.wav anna2.wav --store voices.safetensors
    csc-hf enrol Ben recordings/ben/ --store voices.safetensors
    ```

    In each recording, the main voice is the one to enrol. The store is made if there is none. It belongs to the
    model that it was made with. Names are unique: `--replace` replaces a voice. Voices are biometric data: have
    people's consent.
    """
    if not name.strip():
        raise ValueError("the name is empty: give the voice a name")
    if not store.resolve().parent.is_dir():
        raise ValueError(f"no folder {str(store.parent)!r} for the store: make it first")
    with opened(files) as (found,):
        model_name = check_model(model)
        from .store import VoiceStore, fingerprint

        voices = VoiceStore.load(store) if store.exists() else None
        if voices is not None and name in voices.voices and not replace:
            raise ValueError(f"{name!r} is in {str(store)!r} already: choose another name, or --replace")
        if voices is not None and kind is not None and kind.value != voices.enrolment:
            raise ValueError(
                f"{str(store)!r} holds voices of --enrolment {voices.enrolment}, not {kind.value}: leave the option "
                "out, or choose another store"
            )
        enrolment = voices.enrolment if voices is not None else (kind or Kind.mean).value
        # Nothing is decided here, so a threshold keeps the pipeline from asking for a calibration.
        pipe = load_pipeline("speaker-verification", model_name, enrolment=enrolment, threshold=1.0)
        if voices is None:
            voices = VoiceStore(
                model_name, fingerprint(pipe.model, enrolment), enrolment, pipe.model.config.sampling_rate
            )
        voices.check_model(store, pipe.model, model_name)
        paths = [str(recording.path) for recording in found]
        with by_name(found), Progress("enrolling", pipe.model, found):
            pipe.enrol(name, paths)
        if pipe.enrolled[name].silent:
            from ..audio import decode_audio
            from ..pipelines import is_silent

            silent = [recording.name for recording in found if is_silent(decode_audio(recording.path))]
            raise ValueError(f"{', '.join(map(repr, silent))}: nobody speaks there, leave it out")
        voices.add(name, pipe.enrolled[name], len(found))
        voices.save(store)
    if as_json:
        print_json({"name": name, "recordings": len(found), "store": str(store), "voices": list(voices.voices)})
    else:
        print(f"enrolled {name} by {len(found)} recording(s): {len(voices.voices)} voice(s) in {store}")


@app.command()
def identify(
    files: Files,
    store: Store,
    threshold: Threshold = None,
    condition: Condition = None,
    as_json: Json = False,
    model: Model = None,
) -> int:
    """
    Tell which enrolled voices speak in recordings.

    ```
    csc-hf identify meeting.wav --store voices.safetensors
    csc-hf identify "calls/**/*.wav" --store voices.safetensors --json
    ```

    Each recording is compared with all voices of the store. The table has a line for each voice, best first;
    `--json` prints an object for each recording with the list `voices`, whose entries have `speaker`, `score`,
    `llr` and `decision` as in `verify`.
    """
    with opened(files) as (found,):
        if not store.is_file():
            raise ValueError(f"no store {str(store)!r}: make one with csc-hf enrol")
        name = check_model(model)
        from .store import VoiceStore

        voices = VoiceStore.load(store)
        pipe = load_pipeline(
            "speaker-verification", name, enrolment=voices.enrolment, threshold=threshold, condition=condition
        )
        voices.check_model(store, pipe.model, name)
        pipe.enrolled = voices.voices
        with contextlib.nullcontext() if as_json else Table("file", "voice", "score", "llr", "speaks") as table:

            def work(recording: Recording) -> None:
                result = pipe(str(recording.path))
                if table is None:
                    print_json({"file": recording.name, "voices": result})
                    return
                for voice in result:
                    row = voice["speaker"], voice["score"], voice["llr"], yes_no(voice["decision"])
                    table.add(recording.name, *row)

            return for_each(Progress("identifying", pipe.model, found), work)


@app.command()
def separate(
    files: Annotated[list[str], typer.Argument(metavar="MIX", help="Files, folders, glob patterns, or -.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to write to, made if needed.")],
    as_json: Json = False,
    model: Model = None,
) -> int:
    """
    Separate the voices of recordings into files, one for each slot of the model.

    ```
    csc-hf separate meeting.wav --out separated
    ```

    writes `separated/meeting-1.wav`, `separated/meeting-2.wav`, … as 32-bit floats at the sampling rate of the
    model. Recordings of any length take constant memory. Levels are those at which the files best add up to the
    recording; where a sample would clip, all of its files are turned down by one gain, which `--json` reports. A
    slot whose activity is below zero holds nobody.
    """
    with opened(files) as (found,):
        stems: dict[str, Recording] = {}
        for recording in found:
            if (other := stems.setdefault(recording.stem, recording)) is not recording:
                raise ValueError(
                    f"{other.name!r} and {recording.name!r} would be written to the same files: separate them into "
                    "different folders"
                )
        pipe = load_pipeline("speech-separation", check_model(model))
        from .files import separate_to_files

        out.mkdir(parents=True, exist_ok=True)
        slots = range(pipe.model.config.num_sources)
        targets = {recording: [out / f"{stem}-{slot + 1}.wav" for slot in slots] for stem, recording in stems.items()}
        check_targets([target for of_one in targets.values() for target in of_one], found)
        with contextlib.nullcontext() if as_json else Table("file", "slot", "activity", "speaks") as table:

            def work(recording: Recording) -> None:
                written = [str(target) for target in targets[recording]]
                audio, gain = separate_to_files(
                    pipe.model, recording.path, lambda _: list(enumerate(written)), out.resolve()
                )
                if table is None:
                    result = {"files": written, "activity": audio.activity.tolist(), "gain": gain}
                    print_json({"file": recording.name, **result})
                    return
                for slot, (target, activity) in enumerate(zip(written, audio.activity.tolist(), strict=True)):
                    table.add(target, slot + 1, activity, yes_no(activity > 0))

            return for_each(Progress("separating", pipe.model, found), work)


@app.command()
def extract(
    mix: Annotated[str, typer.Argument(metavar="MIX", help="Recording of several voices; - is standard input.")],
    target: Annotated[
        list[str],
        typer.Option("--enrol", "-e", metavar="TARGET", help="Recording of the voice to extract; repeatable."),
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="FILE", help="Audio file to write; - for standard output.")
    ],
    as_json: Json = False,
    model: Model = None,
) -> None:
    """
    Extract from a recording the voice that is most like an enrolled one.

    ```
    csc-hf extract meeting.wav --enrol anna.wav --out anna-only.wav
    cat meeting.flac | csc-hf extract - -e anna.wav -o - > anna-only.wav
    ```

    The score is the cosine of the two. A low one says that the voice is probably not there: what is written is the
    voice most like it all the same. Files are 32-bit floats where the format has them, take constant memory, and
    never clip.
    """
    with opened([mix], target) as (mixes, enrolments):
        if len(mixes) > 1:
            raise ValueError(f"MIX, {mix!r}, holds {len(mixes)} recordings: give one")
        if out == STDIN and as_json:
            raise ValueError("--json and --out - would both write to standard output: choose one")
        from .files import check_format, separate_to_files

        check_format(out)
        check_stdout(out)
        if out != STDIN:
            check_targets([Path(out)], [*mixes, *enrolments])
            if not Path(out).resolve().parent.is_dir():
                raise ValueError(f"no folder {str(Path(out).parent)!r} to write to: make it first")
        pipe = load_pipeline("speech-separation", check_model(model))
        from ..pipelines import closest_slot

        result: dict[str, Any] = {}

        def choose(audio: Any) -> list[tuple[int, str]]:
            best, score = closest_slot(audio, enrolment)
            result.update(score=score, activity=float(audio.activity[best]))
            return [(best, out)]

        folder = Path(tempfile.gettempdir()) if out == STDIN else Path(out).resolve().parent
        with by_name(mixes, enrolments), Progress("extracting", pipe.model, [*mixes, *enrolments]):
            enrolment = pipe._enrol(pipe._decode_enrolment([str(recording.path) for recording in enrolments]))
            _, gain = separate_to_files(pipe.model, mixes[0].path, choose, folder)
    if as_json:
        print_json({"file": mixes[0].name, "out": out, **result, "gain": gain})
    elif out != STDIN:
        print(f"{out}: score {result['score']:.2f}, activity {result['activity']:.2f}")


def check_stdout(out: str) -> None:
    """Raise a ValueError if `out` is standard output and that is a terminal, which shows no binary data."""
    if out == STDIN and sys.stdout.isatty():
        raise ValueError("--out - would write binary data to the terminal: send standard output to a file or pipe")


def check_targets(targets: Sequence[Path], sources: Sequence[Recording]) -> None:
    """Raise a ValueError if a file would be written over a recording that is read."""
    read = {recording.path.resolve(): recording for recording in sources}
    for target in targets:
        if target.is_dir():
            raise ValueError(f"{str(target)!r} is a folder: choose another --out")
        if target.resolve() in read:
            raise ValueError(f"{str(target)!r} would be written over the recording itself: choose another --out")


@app.command(add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def evaluate(context: typer.Context) -> None:
    """
    Measure speaker verification on labelled speech, in noise and among other talkers.

    ```
    csc-hf evaluate --data "held_out/*.parquet" --conditions clean mix0
    ```

    `csc-hf evaluate --help` lists its options.
    """
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> Any:
            raise ValueError(f"{message} (csc-hf evaluate --help)")

    arguments = context.args
    from ..evaluation.command import add_options, check_options, run

    parser = Parser(
        prog="csc-hf evaluate",
        description="Measure speaker verification on labelled speech: in noise, among other talkers, in short tests.",
        epilog="""\
examples:
  csc-hf evaluate --data "held_out/*.parquet" --conditions clean mix0
  csc-hf evaluate runs/pretrain resemblyzer mfcc --data speech/ --output_dir runs/evaluation
  csc-hf evaluate runs/pretrain --trials voxceleb1_test.txt --root voxceleb1/wav --json""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser, needs_model=False)
    args = parser.parse_args(arguments)
    args.models = args.models or [default_model()]
    check_options(args, parser.error)
    keep_transformers_quiet()
    run(args, shlex.join(["csc-hf", "evaluate", *arguments]), progress=sys.stderr.isatty())


@app.command()
def card(
    results: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Render a new card with the figures of a results.json of csc-hf evaluate."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="What the new card calls the model, such as user/name.")] = None,
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="FILE", help="File to write; - for standard output.")
    ] = "-",
    as_json: Json = False,
    model: Model = None,
) -> None:
    """
    Print the card of a model, or render one from what was measured.

    ```
    csc-hf card
    csc-hf card --json
    csc-hf evaluate runs/mine --data speech/ --output_dir runs/evaluation
    csc-hf card --model runs/mine --results runs/evaluation/results.json \\
        --name user/mine --out runs/mine/README.md
    ```

    `--json` prints an object with the facts of the model (`model`, `architecture`, `parameters`, `slots`,
    `embedding_size`, `sampling_rate`, `calibrations`) and the text of the card.
    """
    model_name = check_model(model)
    text = read_card(model_name) if results is None else new_card(model_name, results, name)
    if text is None and not as_json:
        raise ValueError(f"{model_name!r} has no card: render one with --results")
    if out != STDIN and text is not None:
        from .store import write_aside

        write_aside(Path(out), text.encode())
    if as_json:
        print_json({**facts(model_name), "card": text})
    elif out == STDIN and text is not None:
        print(text)


def load_model(name: str) -> Any:
    """A CSC model, of the class that it was saved as."""
    from .. import CSCConfig, modeling_csc

    architectures = CSCConfig.from_pretrained(name).architectures or ["CSCModel"]
    return getattr(modeling_csc, architectures[0]).from_pretrained(name)


def facts(name: str) -> dict[str, Any]:
    model = load_model(name)
    return {
        "model": name,
        "architecture": type(model).__name__,
        "parameters": model.num_parameters(),
        "slots": model.config.num_sources,
        "embedding_size": model.config.speaker_embedding_size,
        "sampling_rate": model.config.sampling_rate,
        "calibrations": sorted(model.config.calibration or {}),
    }


def read_card(name: str) -> str | None:
    """The README.md of a folder or of a repository on the Hub; None if there is none."""
    from transformers.utils import cached_file

    path = cached_file(name, "README.md", _raise_exceptions_for_missing_entries=False)
    return None if path is None else Path(path).read_text(encoding="utf-8")


def new_card(name: str, results: Path, called: str | None) -> str:
    """A card with the figures of this model in a results.json."""
    try:
        measured = json.loads(results.read_text(encoding="utf-8"))["results"]
        names = list(measured)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{str(results)!r} is no results.json of csc-hf evaluate") from error
    key = next((one for one in names if one == name or Path(one).resolve() == Path(name).resolve()), None)
    if key is None:
        raise ValueError(
            f"{str(results)!r} has figures of {', '.join(names)}, not of {name!r}: evaluate this model first"
        )
    from ..evaluation.reports import format_report
    from ..training.hub import render_card

    report = f"```\n{format_report(measured[key])}\n```"
    return str(render_card(load_model(name), report, called or Path(name).name))
>>>>>>> safety
