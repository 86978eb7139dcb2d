# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Importing csc_hf, registration with Transformers, and loading where csc_hf is not installed."""

import subprocess
import sys
from importlib import metadata

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
    AutoModelForAudioXVector,
    AutoModelForPreTraining,
)

import csc_hf
from csc_hf import (
    CSCConfig,
    CSCFeatureExtractor,
    CSCForPreTraining,
    CSCForSpeakerVerification,
    CSCForSpeechSeparation,
    CSCForXVector,
    CSCPreTrainedModel,
    broken_packages,
    modeling_csc,
)
from csc_hf.configuration_csc import MODEL_CLASSES

AUTO_CLASSES = {
    AutoModel: "CSCModel",
    AutoModelForPreTraining: "CSCForPreTraining",
    AutoModelForAudioXVector: "CSCForXVector",
    AutoModelForAudioClassification: "CSCForSequenceClassification",
    AutoModelForAudioFrameClassification: "CSCForAudioFrameClassification",
}


def run(code: str, *args: str) -> str:
    """The output of a fresh Python process."""
    process = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_every_model_class_stands_in_the_one_list():
    classes = [value for value in vars(modeling_csc).values() if isinstance(value, type)]
    models = {c.__name__ for c in classes if issubclass(c, CSCPreTrainedModel) and c is not CSCPreTrainedModel}
    assert models == set(MODEL_CLASSES)
    assert models | {"CSCConfig", "CSCFeatureExtractor", "PRESETS"} <= set(csc_hf.__all__)
    assert {auto.__name__: name for auto, name in AUTO_CLASSES.items()}.items() <= {
        auto: name for name, auto in MODEL_CLASSES.items()
    }.items()
    for name in csc_hf.__all__:
        assert hasattr(csc_hf, name)


def test_an_installed_package_that_cannot_be_imported_is_named_with_the_remedy(tmp_path):
    """As a torchaudio that was built for another torch: Transformers imports it because it is installed."""
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text("raise OSError('libcudart.so.13: no such file\\nand more')")
    (tmp_path / "torchaudio-9.8.dist-info").mkdir()
    (tmp_path / "torchaudio-9.8.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchaudio\nVersion: 9.8\n"
    )
    code = """
import sys
sys.path.insert(0, sys.argv[1])
try:
    import csc_hf
except ImportError as error:
    print(error)
"""
    printed = run(code, str(tmp_path)).splitlines()
    said = f"torchaudio 9.8 is installed but cannot be imported beside torch {metadata.version('torch')} "
    assert len(printed) == 1 and printed[0].startswith(f"{said}(libcudart.so.13: no such file): ")
    assert "`pip uninstall torchaudio`" in printed[0]


def test_an_error_of_our_own_is_no_broken_package():
    with pytest.raises(ImportError) as caught:
        exec("from transformers import no_such_name", {"__name__": "csc_hf.modeling_csc"})
    trace = caught.value.__traceback__.tb_next  # without this test's own frame
    assert broken_packages.explain(caught.value.with_traceback(trace)) is None


REGISTERED = """
import csc_hf
from transformers import AutoConfig, AutoModel, pipeline
from transformers.utils import logging
logging.set_verbosity(logging.CRITICAL)  # the weights are new
print(type(AutoModel.from_config(AutoConfig.for_model("csc", hidden_size=16))).__name__)
model = csc_hf.CSCForSpeechSeparation(csc_hf.CSCConfig.tiny())
for task in ("speaker-verification", "speech-separation"):
    print(type(pipeline(task, model)).__name__)
"""
GUARDED = """
import sys

class Guard:
    def find_spec(self, name, path=None, target=None):
        if name in ("accelerate", "datasets", "torchaudio", "soundfile", "matplotlib", "scipy", "torchcodec"):
            frame = sys._getframe(1)
            while frame.f_globals["__name__"].startswith("importlib"):
                frame = frame.f_back
            importer = frame.f_globals["__name__"]
            if importer.startswith("csc_hf"):
                print(importer, "imports", name)

sys.meta_path.insert(0, Guard())
import csc_hf
exec("import datasets", {"__name__": "csc_hf.evil"})
print("--")
"""


@pytest.fixture(scope="module")
def imported():
    """What a process that imports csc_hf before anything else prints of its imports, and of what is registered."""
    return run(GUARDED + REGISTERED).split("--\n")


def test_importing_imports_no_optional_dependency(imported):
    """Transformers imports some of them where they are installed; csc_hf must not."""
    assert imported[0].splitlines()[0] == "csc_hf.evil imports datasets"  # so it would have been seen


@pytest.mark.parametrize("first", ["csc_hf", pytest.param("transformers", marks=pytest.mark.release)])
def test_importing_registers_the_auto_classes_and_the_pipelines(first, imported):
    printed = imported[1] if first == "csc_hf" else run(f"from transformers import AutoModel, pipeline\n{REGISTERED}")
    assert printed.split() == ["CSCModel", "SpeakerVerificationPipeline", "SpeechSeparationPipeline"]


def test_auto_classes_load_what_was_saved(tmp_path):
    config = CSCConfig.tiny()
    model = CSCForPreTraining(config).eval()
    model.save_pretrained(tmp_path)
    CSCFeatureExtractor(min_samples=config.segment_samples).save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is CSCConfig
    assert type(AutoFeatureExtractor.from_pretrained(tmp_path)) is CSCFeatureExtractor
    for auto_class, name in AUTO_CLASSES.items():
        assert type(auto_class.from_pretrained(tmp_path)) is getattr(csc_hf, name)
    audio = torch.randn(1, 2000)
    with torch.no_grad():
        loaded = AutoModelForPreTraining.from_pretrained(tmp_path).eval()
        assert torch.equal(loaded(audio).sources, model(audio).sources)


@pytest.mark.parametrize(
    "saved_class",
    [
        CSCForPreTraining,
        pytest.param(CSCForXVector, marks=pytest.mark.release),
        pytest.param(CSCForSpeechSeparation, marks=pytest.mark.release),
        pytest.param(CSCForSpeakerVerification, marks=pytest.mark.release),
    ],
)
def test_a_saved_folder_loads_where_csc_hf_is_not_installed(saved_class, tmp_path, fresh_python):
    torch.manual_seed(0)
    config = CSCConfig.tiny(front_end="stft", initializer_range=0.3)
    model = saved_class(config).eval()
    model.save_pretrained(tmp_path)
    extractor = CSCFeatureExtractor(min_samples=config.segment_samples)
    extractor.save_pretrained(tmp_path)
    # A head's own classifier fits no other head.
    fitting = [AutoModelForPreTraining, AutoModelForAudioXVector]
    loaders = fitting if saved_class is CSCForXVector else list(AUTO_CLASSES)
    files = {path.name for path in tmp_path.iterdir()}
    assert {"configuration_csc.py", "feature_extraction_csc.py", "modeling_csc.py", "model.safetensors"} <= files
    audio = torch.randn(1, 3000)
    with torch.no_grad():
        heard = extractor(audio[0].numpy(), sampling_rate=16000, return_tensors="pt")
        expected = model.csc(**heard).source_embeddings
    torch.save({"audio": audio, "expected": expected}, tmp_path / "expected.pt")
    process = fresh_python(
        """
import sys
sys.modules["csc_hf"] = None  # any import of it fails
import torch, transformers
folder = sys.argv[1]
expected = torch.load(folder + "/expected.pt")
extractor = transformers.AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
inputs = extractor(expected["audio"][0].numpy(), sampling_rate=16000, return_tensors="pt")
model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
with torch.no_grad():
    torch.testing.assert_close(model(**inputs).source_embeddings, expected["expected"])
print(type(model).__name__)
for name in sys.argv[2:]:
    head = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True)
    print(type(head).__name__)
model.save_pretrained(folder + "/again")  # what remote code has loaded can be saved, and loaded once more
print(type(transformers.AutoModel.from_pretrained(folder + "/again", trust_remote_code=True)).__name__)
""",
        str(tmp_path),
        *(loader.__name__ for loader in loaders),
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ["CSCModel", *(AUTO_CLASSES[loader] for loader in loaders), "CSCModel"]
