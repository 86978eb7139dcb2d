# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Transformers' own common tests, made importable.

They are only in the source distribution, not in the wheel. So pip downloads that of the installed version once, and
its `tests/` folder is kept in `.cache/upstream-tests/VERSION`. Without a connection, set the environment variable
`CSC_HF_UPSTREAM_TESTS` to a folder that holds the unpacked source distribution.

The source distribution lacks some sub-packages of `tests/` that the common tests import; they get stand-ins here. The
package is imported as `transformers_tests`, so that it does not shadow another `tests`.
"""

import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
import types
import warnings
from pathlib import Path
from unittest import mock

import pytest
import transformers

FOLDER_VARIABLE = "CSC_HF_UPSTREAM_TESTS"
CACHE = Path(__file__).resolve().parents[1] / ".cache" / "upstream-tests"
PACKAGE = "transformers_tests"
MODULE_OF = {
    "ConfigTester": "test_configuration_common",
    "ModelTesterMixin": "test_modeling_common",
    "PipelineTesterMixin": "test_pipeline_mixin",
    "SequenceFeatureExtractionTestMixin": "test_sequence_feature_extraction_common",
    "TrainingTesterMixin": "test_training_mixin",
}
# From the missing module `utils.test_configuration_utils`: the fields of all configurations, not at their defaults.
CONFIG_COMMON_KWARGS = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "is_encoder_decoder": True,
    "architectures": ["SomeModel"],
    "id2label": {0: "label"},
    "label2id": {"label": 0},
    "problem_type": "regression",
}


class UpstreamTestsMissing(Exception):
    """Transformers' common tests are not available; the message says what to do."""


def load_upstream_tests(our_models: dict[str, dict[str, str | tuple[str, ...]]]) -> types.SimpleNamespace:
    """Imports the classes named in `MODULE_OF`.

    Upstream selects tests by the name of a class, from tables of its own models (`MODEL_MAPPING_NAMES`, ...): a class
    that is in none of them passes without being run. `our_models` adds model types and class names to the tables as
    the tests see them, not to Transformers itself.

    If the tests are not available, the classes' tests fail and say why; other tests still run.
    """
    try:
        folder = upstream_folder() / "tests"
    except UpstreamTestsMissing as missing:
        return types.SimpleNamespace(**dict.fromkeys(MODULE_OF, _failing_tests(str(missing))))

    package = types.ModuleType(PACKAGE)
    package.__path__ = [str(folder)]
    sys.modules[PACKAGE] = package
    _stand_in("exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
    _stand_in("generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
    _stand_in("utils.test_configuration_utils", config_common_kwargs=CONFIG_COMMON_KWARGS)

    with (
        # some modules import Transformers from the folder around them; give them the installed one
        mock.patch("transformers.utils.direct_transformers_import", lambda path: transformers),
        # the pipeline tests read a list of tiny models when imported; it is absent as well
        tempfile.TemporaryDirectory() as tiny_models,
        mock.patch.dict(os.environ, TRANSFORMERS_TINY_MODEL_PATH=tiny_models),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", pytest.PytestUnknownMarkWarning)  # marks that upstream's settings register
        summary = Path(tiny_models, "reports", "tiny_model_summary.json")
        summary.parent.mkdir()
        summary.write_text("{}", encoding="utf-8")
        modules = {name: importlib.import_module(f"{PACKAGE}.{module}") for name, module in MODULE_OF.items()}

    for table, entries in our_models.items():
        module = modules["ModelTesterMixin"]
        setattr(module, table, {**getattr(module, table), **entries})
    return types.SimpleNamespace(**{name: getattr(module, name) for name, module in modules.items()})


def upstream_folder() -> Path:
    """Folder of the unpacked source distribution of the installed Transformers, downloaded if necessary.

    Raises:
        UpstreamTestsMissing: If the download fails, or the folder named by `CSC_HF_UPSTREAM_TESTS` does not hold the
            source distribution of the installed version.
    """
    version = transformers.__version__
    if FOLDER_VARIABLE not in os.environ:
        if not (CACHE / version).is_dir():
            download(version)
        return CACHE / version

    folder = Path(os.environ[FOLDER_VARIABLE])
    if not (folder / "PKG-INFO").is_file() or not (folder / "tests").is_dir():
        raise UpstreamTestsMissing(
            f"{FOLDER_VARIABLE}={folder} holds no unpacked source distribution (a file PKG-INFO and a folder tests). "
            f"Unset the variable to have it downloaded, or name the unpacked folder transformers-{version}."
        )
    if f"Version: {version}" not in (folder / "PKG-INFO").read_text(encoding="utf-8").splitlines():
        raise UpstreamTestsMissing(
            f"{FOLDER_VARIABLE}={folder} is not transformers {version}, which is installed. Name the folder of that "
            "version's source distribution, or unset the variable to have it downloaded."
        )
    return folder


def download(version: str) -> None:
    """Puts PKG-INFO and `tests/` of Transformers' source distribution `version` into `CACHE / version`."""
    CACHE.mkdir(parents=True, exist_ok=True)
    (CACHE / ".gitignore").write_text("*\n", encoding="utf-8")
    root = f"transformers-{version}"
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "2", "download"]
        source_only = ["--no-deps", "--no-binary", ":all:", "--dest", scratch]
        result = subprocess.run([*pip, *source_only, f"transformers=={version}"], capture_output=True, text=True)
        if result.returncode:
            raise UpstreamTestsMissing(
                f"The source distribution of transformers {version}, which holds Transformers' common tests, could "
                f"not be downloaded. Connect to a package index, or set {FOLDER_VARIABLE} to a folder that holds it "
                f"unpacked. pip said:\n{result.stderr.strip() or result.stdout.strip()}"
            )
        with tarfile.open(Path(scratch, f"{root}.tar.gz")) as archive:
            wanted = [m for m in archive if m.name == f"{root}/PKG-INFO" or m.name.startswith(f"{root}/tests/")]
            archive.extractall(scratch, members=wanted, filter="data")
        try:
            Path(scratch, root).rename(CACHE / version)  # atomic: nobody sees a half-unpacked folder
        except OSError:
            if not (CACHE / version).is_dir():  # another process was faster
                raise


def _stand_in(name: str, **attributes) -> None:
    module = types.ModuleType(f"{PACKAGE}.{name}")
    module.__dict__.update(attributes)
    sys.modules[module.__name__] = module


def _failing_tests(message: str) -> type:
    class UpstreamTestsAreMissing:
        def setUp(self):
            raise UpstreamTestsMissing(message)

        def test_upstream_tests_are_there(self):
            """Fails in `setUp`, like every test of this class."""

    return UpstreamTestsAreMissing
