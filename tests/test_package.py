# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Importing, registration with the Auto classes, and loading without csc_hf."""

import subprocess
import sys

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
from csc_hf import CSCConfig, CSCFeatureExtractor, CSCForPreTraining, CSCForSpeechSeparation, CSCForXVector, CSCModel

AUTO_CLASSES = {
    AutoModel: "CSCModel",
    AutoModelForPreTraining: "CSCForPreTraining",
    AutoModelForAudioXVector: "CSCForXVector",
    AutoModelForAudioClassification: "CSCForSequenceClassification",
    AutoModelForAudioFrameClassification: "CSCForAudioFrameClassification",
}


def run(code: str, *args: str) -> str:
    """What a fresh Python process prints."""
    process = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_every_public_name_is_there():
    for name in csc_hf.__all__:
        assert getattr(csc_hf, name).__name__ == name
    assert set(csc_hf.__all__) <= set(dir(csc_hf))
    with pytest.raises(AttributeError, match="CSCForNothing"):
        csc_hf.CSCForNothing  # noqa: B018


def test_importing_is_lazy():
    assert run("import sys, csc_hf; print('torch' in sys.modules, 'transformers' in sys.modules)") == "False False\n"
    loaded = run(
        "import sys\nfrom csc_hf import *\n"
        "print([name for name in ('torchaudio', 'datasets', 'soundfile', 'accelerate') if name in sys.modules])"
    )
    # Transformers itself imports some of these where they are installed: ours must add none.
    upstream = run(
        "import sys\nfrom transformers import PreTrainedModel, SequenceFeatureExtractor, AutoModel\n"
        "print([name for name in ('torchaudio', 'datasets', 'soundfile', 'accelerate') if name in sys.modules])"
    )
    assert loaded == upstream


@pytest.mark.parametrize(
    "imports",
    [
        "import csc_hf; from transformers import AutoModel, AutoConfig",
        "from transformers import AutoModel, AutoConfig; import csc_hf",
        "from csc_hf import CSCModel; from transformers import AutoModel, AutoConfig",
        "import csc_hf, transformers.models.auto.modeling_auto; from transformers import AutoModel, AutoConfig",
    ],
)
def test_importing_registers_in_any_order(imports):
    code = "config = AutoConfig.for_model('csc', hidden_size=16)\nprint(type(AutoModel.from_config(config)))"
    assert "csc_hf.modeling_csc.CSCModel" in run(f"{imports}\n{code}")


@pytest.mark.parametrize(
    "imports",
    [
        "import csc_hf; from transformers import pipeline",
        "from transformers import pipeline; import csc_hf",
        "import csc_hf.pipelines; from transformers import pipeline",
        "import csc_hf, transformers.pipelines.base; from transformers import pipeline",
    ],
)
def test_pipelines_are_known_after_importing_in_any_order(imports):
    code = """
import logging
from csc_hf import CSCConfig, CSCForSpeechSeparation
logging.disable()  # of weights that are new
model = CSCForSpeechSeparation(CSCConfig.tiny())
print([type(pipeline(task, model)).__name__ for task in ("speaker-verification", "speech-separation")])
"""
    assert run(f"{imports}\n{code}") == "['SpeakerVerificationPipeline', 'SpeechSeparationPipeline']\n"


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


@pytest.mark.parametrize("saved_class", [CSCModel, CSCForPreTraining, CSCForXVector, CSCForSpeechSeparation])
def test_a_saved_folder_loads_where_csc_hf_is_not_installed(saved_class, tmp_path):
    torch.manual_seed(0)
    config = CSCConfig.tiny(front_end="stft", initializer_range=0.3)
    model = saved_class(config).eval()
    model.save_pretrained(tmp_path)
    CSCFeatureExtractor(min_samples=config.segment_samples).save_pretrained(tmp_path)
    # A head's own classifier fits no other head.
    fitting = [AutoModelForPreTraining, AutoModelForAudioXVector]
    loaders = fitting if saved_class is CSCForXVector else list(AUTO_CLASSES)
    files = {path.name for path in tmp_path.iterdir()}
    assert {"configuration_csc.py", "feature_extraction_csc.py", "modeling_csc.py", "model.safetensors"} <= files
    audio = torch.randn(1, 3000)
    base = model if saved_class is CSCModel else model.csc
    with torch.no_grad():
        expected = base(audio).source_embeddings
    torch.save({"audio": audio, "expected": expected}, tmp_path / "expected.pt")
    printed = run(
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
    assert printed.split() == ["CSCModel", *(AUTO_CLASSES[loader] for loader in loaders), "CSCModel"]
