# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""What the documentation says holds: its Python runs, its links lead somewhere, its commands have these options."""

import contextlib
import dataclasses
import functools
import importlib
import io
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
import yaml
from accelerate.commands.launch import launch_command_parser
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

import csc_hf
from csc_hf import CSCConfig, cli
from csc_hf.audio import LIMITS
from csc_hf.data.mixing import MixingConfig

ROOT = Path(__file__).resolve().parents[1]
AUDIO = ROOT / "examples" / "audio"
IGNORED = {".git", ".venv", "build", "dist", "node_modules", "runs", "site"}
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in ROOT.rglob("*.md")
    if not any(part in IGNORED or part.endswith("_cache") for part in path.relative_to(ROOT).parts)
)
RELEASED = ("csc-small", "csc-small-label-free", "csc-small-scorer")
TEMPLATES = {"csc_hf/training/model_card_template.md", *(f"model_cards/{name}.md" for name in RELEASED)}
RENDERED = [page for page in PAGES if page not in TEMPLATES]


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[tuple[int, str]]:
    """The code blocks of a page in a language, each with the number of its first line."""
    text = read(page)
    found = re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, block.start()) + 2, block[1]) for block in found]


# --- Python ----------------------------------------------------------------------------------------------------------

CHECKS = {
    "verify(anna, ben)": """
assert [round(verify(anna, other)["score"], 2) for other in (meeting, ben)] == [0.77, 0.25]
assert [verify(anna, other)["decision"] for other in (meeting, ben)] == [True, False]
assert separate(meeting)["sources"].shape == (2, 86536)
assert extract(meeting)["source"].shape == (86536,)
""",
    "voices = meeting.sources[0]": "assert scores.shape == (2,) and voices.shape == (2, len(recordings[1]))",
    'diarize("examples/audio/conversation.flac")["turns"]  # start': """
found = diarize("examples/audio/conversation.flac")
assert list(found["embeddings"]) == ["Anna", "speaker_2", "speaker_3", "speaker_4"]
assert found["turns"][0]["speaker"] == "Anna" and found["turns"][-1]["speaker"] == "speaker_4"
""",
    'verify.enrol("ben", [ben])': """
assert [(entry["speaker"], entry["decision"]) for entry in verify(meeting)] == [("ben", True), ("anna", True)]
""",
    "enrolment_values=people": "assert model(meeting[None], enrolment_values=people).logits.shape == (1, 2)",
    "stream = MixtureStream(": """
assert batch["input_values"].shape == (24, 32000) and batch["speaker_ids"].shape == (24, 2)
""",
    'PeftModel.from_pretrained(encoder, "runs/adapter")': """
assert torch.allclose(embeddings, model.eval()(recordings).embeddings, rtol=0, atol=1e-6)
""",
    "min_dcf(scores, labels)": """
assert (round(equal_error_rate(scores, labels), 6), round(min_dcf(scores, labels), 6)) == (0.2, 0.5)
""",
}
"""What is to hold after a block, by a part of its text."""


def python_blocks() -> Iterator:
    pages = [page for page in RENDERED if not page.startswith("model_cards/")]
    for page in pages:
        for line, code in blocks(page, "python"):
            yield pytest.param(page, line, code, id=f"{page}:{line}")


@pytest.mark.parametrize("page, line, code", list(python_blocks()))
def test_python_runs(page, line, code, monkeypatch):
    monkeypatch.chdir(ROOT)
    for limit, value in vars(LIMITS).items():
        monkeypatch.setattr(LIMITS, limit, value)  # a page that lowers it does so for itself
    namespace = {"__name__": "documentation"}
    # Errors name the page and the line in it.
    exec(compile("\n" * (line - 1) + code, page, "exec"), namespace)
    for part, check in CHECKS.items():
        if part in code:
            exec(check, namespace)


def test_every_check_has_its_block():
    text = "\n".join(code.values[2] for code in python_blocks())
    assert all(part in text for part in CHECKS)


@pytest.mark.parametrize("model", RELEASED)
def test_python_of_the_card_runs(model, tmp_path, monkeypatch):
    """Where the model's name is that of its folder, and the recordings are users' own."""
    (tmp_path / model).symlink_to(ROOT / "model_cards" / model)
    for name in ("anna", "meeting"):
        waveform, sampling_rate = soundfile.read(AUDIO / f"{name}.flac", dtype="float32")
        soundfile.write(tmp_path / f"{name}.wav", waveform, sampling_rate)
    monkeypatch.chdir(tmp_path)
    page = f"model_cards/{model}/README.md"
    for line, code in blocks(page, "python"):
        exec(compile("\n" * (line - 1) + code, page, "exec"), {"__name__": "documentation", "waveform": waveform})


@pytest.mark.parametrize("page", [page for page in RENDERED if page != "CHANGELOG.md"])  # it names what was before
def test_names_in_the_package_exist(page):
    for name in set(re.findall(r"\bcsc_hf(?:\.[a-z_]\w*)*(?:\.[A-Z]\w*)?", read(page))):
        value, *attributes = csc_hf, *name.split(".")[1:]
        for index, attribute in enumerate(attributes, start=1):
            if not hasattr(value, attribute):
                with contextlib.suppress(ModuleNotFoundError):
                    importlib.import_module(".".join(name.split(".")[: index + 1]))
            assert hasattr(value, attribute), f"{page} names {name}: there is no {attribute}"
            value = getattr(value, attribute)


# --- Links -----------------------------------------------------------------------------------------------------------


def slugs(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ +(.*?)\s*$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def check_links(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name} links to {target}: there is no such file"
        if anchor:
            assert anchor in slugs(file), f"{page.name} links to {target}: there is no such heading"


@pytest.mark.parametrize("page", RENDERED)
def test_links(page):
    check_links(ROOT / page)


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "other.md").write_text("# A heading: with `code`\n")
    for target, is_good in (
        ("other.md#a-heading-with-code", True),
        ("https://example.org", True),
        ("other.md#no", False),
        ("no.md", False),
    ):
        page = tmp_path / "page.md"
        page.write_text(f"[text]({target})\n")
        with contextlib.nullcontext() if is_good else pytest.raises(AssertionError):
            check_links(page)


@pytest.mark.parametrize("page", RENDERED)
def test_files_of_the_repository_exist(page):
    pattern = (
        r"(?<![\w/.])(?:\.ci|benchmarks|csc_hf|docs|examples|metrics|model_cards|tests)/[\w/.-]+\.(?:py|yaml|md)\b"
    )
    for path in set(re.findall(pattern, read(page))):
        assert (ROOT / path).is_file(), f"{page} names {path}"


# --- Commands --------------------------------------------------------------------------------------------------------

SEPARATORS = {"&&", "||", ";", "|", "do", "done", ";;"}


def commands(page: str) -> Iterator[list[str]]:
    """The words of each command in the bash blocks of a page; variables that the block sets are put in their place."""
    for _, block in blocks(page, "bash"):
        variables = dict(re.findall(r"^(\w+)=\"([^\"]*)\"$", block, re.MULTILINE))
        for name, value in variables.items():
            block = re.sub(rf"\${name}\b", value, block)
        for line in re.sub(r"\\\n", " ", block).splitlines():
            if line.count('"') % 2:  # an argument of several lines, which is not shell
                continue
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words = list(lexer)
            start = 0
            for index, word in enumerate([*words, ";"]):
                if word in SEPARATORS:
                    if words[start:index]:
                        yield words[start:index]
                    start = index + 1


@functools.cache
def options(script: str) -> frozenset[str]:
    """The options in a script's --help."""
    output, argv, path = io.StringIO(), sys.argv, list(sys.path)
    sys.argv = [script, "--help"]
    sys.path.insert(0, str((ROOT / script).parent))
    try:
        with contextlib.redirect_stdout(output), pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    finally:
        sys.argv, sys.path[:] = argv, path
    assert exit_.value.code in (0, None), output.getvalue()
    return frozenset(re.findall(r"(?<![\w-])--\w[\w.-]*\w", output.getvalue()))


def cli_commands() -> set[str]:
    return set(get_command(cli.app).commands)


@functools.cache
def command_options(name: str) -> frozenset[str]:
    """The options in the help of a command of csc-hf."""
    result = CliRunner().invoke(cli.app, [name, "--help"], env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"})
    assert result.exit_code == 0, result.output
    return frozenset(re.findall(r"(?<![\w-])--?\w[\w.-]*\w|-\w\b", result.output))


LAUNCH_OPTIONS = {option for action in launch_command_parser()._actions for option in action.option_strings}
EXTRAS = set(tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"])


def check_command(words: list[str]) -> None:
    scripts = [word for word in words if re.fullmatch(r"(examples|benchmarks|model_cards)/[\w/]+\.py", word)]
    if words[0] == "csc-hf":
        assert words[1] in cli_commands(), f"csc-hf has no command {words[1]}"
        for option in words[2:]:
            if option.startswith("-") and option != "-":
                assert option in command_options(words[1]), f"csc-hf {words[1]} has no {option}"
        return
    if not scripts:
        for extra in re.findall(r"\[(\w+)\]", " ".join(words)) if "pip" in words else ():
            assert extra in EXTRAS, f"{words}: there is no extra {extra}"
        return
    script = scripts[0]
    position = words.index(script)
    for option in words[:position]:
        if option.startswith("--"):
            assert option in LAUNCH_OPTIONS, f"accelerate launch has no {option}"
    for option in words[position + 1 :]:
        if option.startswith("--"):
            assert option in options(script), f"{script} has no {option}"


def test_commands_have_these_options(monkeypatch):
    monkeypatch.chdir(ROOT)
    seen = set()
    for page in RENDERED:
        for words in commands(page):
            try:
                check_command(words)
            except AssertionError as error:
                raise AssertionError(f"{page}: {error}") from error
            seen |= set(words)
    assert {"examples/pretrain.py", "examples/evaluate_verification.py", "benchmarks/run_all.py"} <= seen
    assert {"examples/finetune_mixtures.py", "benchmarks/verification/split_speakers.py"} <= seen
    assert {"csc-hf", *cli_commands()} <= seen


def test_every_field_of_the_configurations_is_an_option():
    """As docs/pretrain.md says, without those that other options set."""
    for section, fields in (
        ("model", {name for name in CSCConfig.__annotations__ if name not in ("calibration", "diarization")}),
        ("mixing", {field.name for field in dataclasses.fields(MixingConfig)} - {"num_identities", "num_sources"}),
    ):
        missing = {f"--{section}.{name}" for name in fields} - options("examples/pretrain.py")
        assert not missing, f"examples/pretrain.py has no {sorted(missing)}"


def test_a_wrong_command_is_found():
    for command in (
        "python examples/evaluate_verification.py --no_such_option 1",
        "accelerate launch --no_such_option examples/finetune_mixtures.py",
        'pip install -e ".[no_such_extra]"',
        "csc-hf no_such_command",
        "csc-hf verify a.wav b.wav --no_such_option",
    ):
        with pytest.raises(AssertionError, match="no_such"):
            check_command(shlex.split(command))


def test_yaml_of_the_documentation():
    found = [(page, code) for page in RENDERED for _, code in blocks(page, "yaml")]
    assert found
    for _, code in found:
        options = yaml.safe_load(code)
        # `classification_loss_weight` is an option of finetune_mixtures.py, which knows its supervision.
        known = {"supervision": "speaker"} if "classification_loss_weight" in options else {}
        MixingConfig(**known | options.get("mixing", {}))


# --- The shell of the project ----------------------------------------------------------------------------------------


def test_the_readme_is_one_page():
    assert len(read("README.md").encode()) <= 9000


def test_the_figure_is_what_its_script_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["plot_separation.py", "--output", str(tmp_path / "figure.png")])
    runpy.run_path(str(ROOT / "examples" / "plot_separation.py"), run_name="__main__")
    shown = ROOT / "docs" / "images" / "separation.png"
    with Image.open(tmp_path / "figure.png") as drawn, Image.open(shown) as committed:
        assert drawn.size == committed.size and drawn.format == committed.format == "PNG"
    assert shown.stat().st_size < 150_000


def test_citation():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # what CFF 1.2.0 requires
    assert citation["license"] == "Apache-2.0"
    paper = citation["preferred-citation"]
    assert paper["type"] == "conference-paper"
    bibtex = blocks("README.md", "bibtex")[0][1]
    assert f"{{{paper['title']}}}" in bibtex and f"{{{paper['year']}}}" in bibtex
    assert re.search(r"author += \{(.*)\}", bibtex)[1] == " and ".join(
        f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]
    )


def test_settings_of_other_tools_are_yaml():
    for path in (".pre-commit-config.yaml", ".github/workflows/test.yaml"):
        assert yaml.safe_load(read(path))


def test_the_changelog_has_this_version():
    version = re.match(r"\d+\.\d+\.\d+", csc_hf.__version__)[0]
    assert re.search(rf"^## \[.*{re.escape(version)}", read("CHANGELOG.md"), re.MULTILINE)
