# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""What files from elsewhere can reach: the code beside a model neither network nor disk, an archive no file outside,
nothing a pickle."""

import io
import os
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hostile import valid_file

from csc_hf import CSCConfig, CSCFeatureExtractor, CSCForPreTraining
from csc_hf.data.utterances import stream_utterances

ROOT = Path(__file__).resolve().parents[2]

RUN_REMOTE_CODE = """
import importlib.util, os, sys
sys.dont_write_bytecode = True
import numpy, safetensors.torch, torch, transformers
from transformers import AutoFeatureExtractor, AutoModel, pipeline  # what they import, and when, is theirs

torch.nn.functional.scaled_dot_product_attention(*torch.ones(3, 1, 1, 4, 8))
torch.ones(2, requires_grad=True).sum().backward()

FORBIDDEN = "socket subprocess os.exec os.posix_spawn os.system os.fork os.remove os.rename os.mkdir os.rmdir os.link"
FORBIDDEN += " os.symlink os.truncate os.chmod shutil http urllib pickle ctypes"
FORBIDDEN = tuple(FORBIDDEN.split())
WRITING = os.O_WRONLY | os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC

def watch(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        if any(letter in (mode or "") for letter in "wax+") or (mode is None and (flags or 0) & WRITING):
            raise PermissionError(f"opens {path!r} for writing")
    elif event.startswith(FORBIDDEN):
        raise PermissionError(f"{event} {arguments!r}")

sys.addaudithook(watch)
for action in (lambda: open("there", "w"), lambda: os.open("there", os.O_CREAT), lambda: __import__("socket").socket(),
               lambda: os.system("true"), lambda: os.mkdir("there")):
    try:
        action()
    except PermissionError:
        continue
    raise SystemExit("the watch does not watch")

folder = sys.argv[1]
package = importlib.util.module_from_spec(importlib.util.spec_from_loader("remote", None))
package.__path__ = [folder]
sys.modules["remote"] = package
sys.modules["csc_hf"] = None
parts = {name: importlib.import_module(f"remote.{name}") for name in (
    "configuration_csc", "feature_extraction_csc", "modeling_csc")}
configuration, extraction, modeling = parts.values()
config = configuration.CSCConfig.from_pretrained(folder)
extractor = extraction.CSCFeatureExtractor.from_pretrained(folder)
batch = extractor([numpy.ones(3000), numpy.ones(4000)], padding=True, sampling_rate=16000, return_tensors="pt")
config.num_labels = 3
for name in modeling.__all__:
    head = getattr(modeling, name)
    if isinstance(head, type) and issubclass(head, torch.nn.Module) and name != "CSCPreTrainedModel":
        model = head(config).eval()
        both = {"enrolment_values": batch["input_values"][:, None]} if name == "CSCForSpeakerVerification" else {}
        assert model(**batch, **both)[0].isfinite().all()
        print(name)
weights = safetensors.torch.load_file(folder + "/model.safetensors")
model = modeling.CSCForPreTraining(config)
model.load_state_dict(weights)
model(**batch).source_embeddings.sum().backward()
"""


def test_remote_code_touches_no_network_and_no_disk(tmp_path, fresh_python):
    """The three files beside a saved model run in a process in which sockets, processes and writing are forbidden."""
    config = CSCConfig.tiny(front_end="stft")
    CSCForPreTraining(config).save_pretrained(tmp_path / "model")
    CSCFeatureExtractor(min_samples=config.segment_samples).save_pretrained(tmp_path / "model")
    result = fresh_python(RUN_REMOTE_CODE, tmp_path / "model", cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    assert len(result.stdout.split()) >= 6
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


HOSTILE_NAMES = [
    "../../evil",
    "/tmp/evil",
    "a/../../../evil",
    "..\\..\\evil",
    "anna/" + "x" * 200,
    "CON",
    "\x1b[2J",
    " ",
]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_archives_are_read_and_never_unpacked(kind, tmp_path, monkeypatch):
    """Whatever the names in an archive, links and devices among them: no file is made anywhere."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "one" / "two" / "three"
    folder.mkdir(parents=True)
    names = [f"{name}{number}.flac" for number, name in enumerate(HOSTILE_NAMES)]
    if kind == "tar":
        with tarfile.open(folder / "data.tar", "w") as archive:
            link = tarfile.TarInfo("0000.link")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = len(valid_file("flac"))
                archive.addfile(member, io.BytesIO(valid_file("flac")))
    else:
        with zipfile.ZipFile(folder / "data.zip", "w") as archive:
            for name in names:
                archive.writestr(name, valid_file("flac"))
    before = sorted(tmp_path.rglob("*"))
    options = {"audio_column": "flac", "id_column": "__key__"} if kind == "tar" else {"id_column": None}
    path = folder / "data.tar" if kind == "tar" else folder
    try:
        rows = list(stream_utterances(path, speaker_column=None, source_column=None, **options).rows())
    except (ValueError, FileNotFoundError):  # of `datasets`, which finds no audio by such names in a zip
        assert kind == "zip"
        rows = []
    for row in rows:
        try:
            assert np.isfinite(row.decode().waveform).all()
        except ValueError as error:
            assert len(str(error)) > 15
    assert [path for path in sorted(tmp_path.rglob("*")) if "cache" not in path.parts] == before
    assert not list(Path("/tmp").glob("evil*")) if os.name == "posix" else True
    assert rows or kind == "zip"


def test_nothing_is_unpickled():
    """Outside of tests, nothing imports pickle; what torch and NumPy load holds numbers only."""
    for file in [*ROOT.glob("csc_hf/**/*.py"), *ROOT.glob("examples/*.py"), *ROOT.glob("benchmarks/**/*.py")]:
        code = file.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(import|from) (pickle|dill|joblib|shelve|marshal)\b", code, re.MULTILINE), file
        assert "allow_pickle=True" not in code and "weights_only=False" not in code, file
        for call in re.findall(r"torch\.load\((.*)\)", code):
            assert "weights_only=True" in call, f"{file}: torch.load({call})"
        assert not re.search(r"\byaml\.(load|unsafe_load|full_load)\(", code), file


def test_what_separation_writes_stays_in_its_folder(tmp_path):
    """The names of files are the only thing of a recording that becomes the name of a file."""
    from csc_hf.cli.recordings import Recording

    for name in ("../../evil.wav", "/etc/passwd", "a/../../b.flac", "..", "...", ".", "a\\b.wav", "x/"):
        stem = Recording(Path(name), name).stem
        assert "/" not in stem and (tmp_path / f"{stem}-1.wav").parent == tmp_path
