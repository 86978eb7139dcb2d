# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
The demo page of csc_hf, in the form of a Hugging Face Space: who speaks when in a recording, what each talker says,
and which of them is a voice that you know. It runs on one CPU core and needs no network.

    pip install -r requirements.txt && python app.py

The model is `$CSC_HF_MODEL`, a folder or a name on the Hub; else csc-small of the clone that this folder is in.
"""

import html
import math
import os
import re
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import gradio as gr
import numpy as np
import soundfile
import torch
from matplotlib.figure import Figure
from transformers import Pipeline, pipeline

from csc_hf import CSCForPreTraining
from csc_hf.audio import SAMPLING_RATE, SILENCE_POWER, power, read_blocks
from csc_hf.diarization import Diarization, Turn
from csc_hf.evaluation.calibration import Calibration
from csc_hf.plots import COLOURS, plot_attention, plot_diarization

HERE = Path(__file__).resolve().parent
MODEL = os.environ.get("CSC_HF_MODEL") or HERE.parents[1] / "model_cards" / "csc-small"

MAX_MEGABYTES = 50  # of an upload
MAX_SECONDS = 120  # of a recording
MAX_TALKERS = len(COLOURS)
MAX_VOICES = 4  # that a visitor enrols
MAX_WAITING = 20  # visitors in the queue
KEEP_SECONDS = 3600  # what visitors upload and enrol, and what the page makes of it
SWEEP_SECONDS = 60

model = CSCForPreTraining.from_pretrained(MODEL).eval()
diarize = pipeline("speaker-diarization", model=model)
calibration = Calibration.load(model, enrolment="attention")
if calibration is None:
    raise SystemExit(f"{MODEL} has no calibration for enrolment by attention: evaluate_verification.py stores one")


@dataclass
class Visit:
    """
    What one visitor has brought: a recording, float32 (samples,), with the voice of each of its talkers, int16
    (samples,); and enrolled voices, float32 (samples,). The pipeline is theirs alone, and shares the model.
    """

    verify: Pipeline
    recording: np.ndarray | None = None
    diarization: Diarization | None = None
    talkers: dict[str, np.ndarray] = field(default_factory=dict)
    voices: dict[str, np.ndarray] = field(default_factory=dict)


def new_visit() -> Visit:
    return Visit(pipeline("speaker-verification", model=model, enrolment="attention"))


def find_talkers(path: str | None, num_talkers: int, visit: Visit | None) -> Visit:
    recording = read(path, "recording")
    number = {"num_speakers": num_talkers} if num_talkers else {"max_speakers": MAX_TALKERS}
    with tempfile.TemporaryDirectory() as folder:
        found = diarize(recording, voices=folder, **number)
        voices = {name: soundfile.read(f"{folder}/{name}.wav")[0] for name in found["embeddings"]}
    talkers = {name: np.int16(32767 * voice.clip(-1, 1)) for name, voice in voices.items()}
    turns = [Turn(**turn) for turn in found["turns"]]
    diarization = Diarization(turns, found["embeddings"], len(recording) / SAMPLING_RATE)
    return replace(visit or new_visit(), recording=recording, diarization=diarization, talkers=talkers)


def enrol(name: str, path: str | None, visit: Visit | None) -> Visit:
    visit, name = visit or new_visit(), " ".join(name.split())
    if not name:
        raise refusal("Whose voice is it? Type a name.")
    if len(visit.voices) == MAX_VOICES and name not in visit.voices:
        raise refusal(f"{MAX_VOICES} voices are enrolled, and no more fit. Forget them first.")
    voice = read(path, f"recording of {name} alone")
    visit.verify.enrol(name, voice)
    return replace(visit, voices=visit.voices | {name: voice})


def forget(visit: Visit | None) -> Visit | None:
    return visit and replace(visit, verify=new_visit().verify, voices={})


def read(path: str | None, what: str) -> np.ndarray:
    """Decode an upload, no further than it is allowed to go on."""
    if path is None:
        raise refusal(f"There is no {what} yet: upload one, record one, or choose an example.")
    name, blocks, samples = Path(path).name, [], 0
    try:
        for block in read_blocks(path):
            blocks.append(block)
            samples += len(block)
            if samples > MAX_SECONDS * SAMPLING_RATE:
                break
    except (ValueError, OSError) as error:
        raise refusal(f"{name} holds no audio that can be read: try a WAV, FLAC or MP3 file.") from error
    if samples > MAX_SECONDS * SAMPLING_RATE:
        raise refusal(f"{name} is longer than {MAX_SECONDS} seconds: bring a part of it.")
    if not samples or power(np.concatenate(blocks)) < SILENCE_POWER:
        raise refusal(f"{name} is silent. Is the microphone on?")
    return np.concatenate(blocks)


def refusal(message: str) -> gr.Error:
    return gr.Error(html.escape(message), print_exception=False)


def compare(visit: Visit) -> list[dict]:
    """What the pipeline says of each enrolled voice and each talker, best first."""
    embeddings = visit.diarization.embeddings.items() if visit.voices else ()
    pairs = [pair | {"talker": talker} for talker, embedding in embeddings for pair in visit.verify.compare(embedding)]
    return sorted(pairs, key=lambda pair: -pair["score"])


# --- what is shown ---------------------------------------------------------------------------------------------------

INTRODUCTION = f"""
# Who speaks, when others speak too

Bring a recording in which people talk, one after the other or at once. This page finds the talkers, lets you hear each
of them alone, and says which of them is a voice that you know. The model has {model.num_parameters() / 1e6:.1f}
million parameters and runs on the processor of this server. Recordings go nowhere else and are deleted after
{KEEP_SECONDS // 60} minutes.
"""
CONSENT = "A voice identifies a person: have their consent. It is forgotten after your visit."
TRIALS = {"mix0": "two people talking at once, equally loud", "clean": "people talking alone"}
MEANING = f"""
A score is a cosine, from −1 to 1. From {calibration.threshold:.2f} up, one person is likelier than two. This threshold
was learnt on {calibration.num_target + calibration.num_nontarget:,} comparisons of voices with recordings of
{TRIALS.get(calibration.condition, calibration.condition)}, and gets {calibration.eer:.0%} of them wrong. So decide
nothing about anybody by this page.
"""


def plain(name: str) -> str:
    """A name that a visitor has typed, so that Markdown shows it as it is."""
    return re.sub(r"([^\w\s])", r"\\\1", name)


def titles(visit: Visit, pairs: list[dict]) -> dict[str, str]:
    """What to call the talkers: by their number, and by the enrolled voice that they are most like."""
    names = {pair["talker"]: f", {pair['speaker']}" for pair in reversed(pairs) if pair["decision"]}
    return {talker: talker.replace("speaker_", "Talker ") + names.get(talker, "") for talker in visit.talkers}


def in_words(llr: float) -> str:
    ratio = math.exp(min(abs(llr), math.log(1000)))
    times = "over 1000" if ratio > 999 else f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"
    return f"{times} times likelier {'one person than two' if llr > 0 else 'two people than one'}"


def verdict(name: str, visit: Visit, pairs: list[dict]) -> str:
    """Markdown: which talker an enrolled voice is, and why."""
    own = [pair for pair in pairs if pair["speaker"] == name]
    talker, _, who = titles(visit, pairs)[own[0]["talker"]].partition(", ")
    heading = f"{plain(name)} is none of the talkers"
    if own[0]["decision"]:
        other = f" could be {talker.lower()}, but {plain(who)} is likelier"
        heading = plain(name) + (f" is {talker.lower()}" if who == name else other)
    rows = [f"| {titles(visit, [])[one['talker']]} | {one['score']:.2f} | {in_words(one['llr'])} |" for one in own]
    question = f"Where the model looks in the recording of {plain(name)} to recognise {talker.lower()}:"
    return "\n".join([f"### {heading}", "| | score | what it means |", "| --- | --- | --- |", *rows, "", question])


def draw_talkers(visit: Visit, pairs: list[dict]) -> Figure:
    names = {talker: title.replace("$", r"\$") for talker, title in titles(visit, pairs).items()}
    turns = [replace(turn, speaker=names[turn.speaker]) for turn in visit.diarization.turns]
    embeddings = {names[talker]: embedding for talker, embedding in visit.diarization.embeddings.items()}
    figure = Figure(figsize=(10, 3.6), layout="constrained", dpi=120)
    plot_diarization(
        replace(visit.diarization, turns=turns, embeddings=embeddings), visit.recording, figure.subplots()
    )
    return figure


@torch.inference_mode()
def draw_attention(visit: Visit, name: str, talker: str) -> Figure:
    """The first seconds of an enrolled voice, and where the cross-attention looks when it is asked for a talker."""
    voice = visit.voices[name][: 10 * SAMPLING_RATE]
    memory = model.base_model(torch.from_numpy(voice)[None]).source_hidden_states[0]  # (slots, segments, hidden size)
    scores = model.aggregator.scores(torch.from_numpy(visit.diarization.embeddings[talker]), memory.flatten(0, 1))
    weights = scores.softmax(-1).mean(0).view(memory.shape[:2]).sum(0)  # over all heads and slots: (segments,)
    seconds = np.asarray(model.config.segment_centres(len(voice))) / SAMPLING_RATE
    figure = Figure(figsize=(10, 2.4), layout="constrained", dpi=120)
    plot_attention(weights.numpy(), seconds, voice, figure.subplots(), COLOURS[list(visit.talkers).index(talker)])
    return figure


def show_talkers(visit: Visit | None) -> None:
    if visit is None or visit.recording is None:
        gr.Markdown("*The talkers will be here, each in a colour.*")
        return
    pairs = compare(visit)
    gr.Markdown(f"### {len(visit.talkers) or 'No'} talker{'s' * (len(visit.talkers) != 1)}")
    gr.Plot(draw_talkers(visit, pairs), show_label=False)
    for colour, (talker, title) in zip(COLOURS, titles(visit, pairs).items()):
        options = {"buttons": ["download"], "waveform_options": gr.WaveformOptions(waveform_color=colour)}
        gr.Audio((SAMPLING_RATE, visit.talkers[talker]), label=title, **options)


def show_voices(visit: Visit | None) -> None:
    if visit is None or not visit.voices:
        gr.Markdown("*Enrolled voices will be here, each compared with the talkers.*")
    elif not visit.talkers:
        gr.Markdown(f"Enrolled: {', '.join(map(plain, visit.voices))}. Now find the talkers of a recording.")
    else:
        pairs = compare(visit)
        for name in visit.voices:
            gr.Markdown(verdict(name, visit, pairs))
            best = next(pair["talker"] for pair in pairs if pair["speaker"] == name)
            gr.Plot(draw_attention(visit, name, best), show_label=False)
        gr.Markdown(MEANING)


def build() -> gr.Blocks:
    audio = {"sources": ["upload", "microphone"], "type": "filepath", "buttons": []}
    example = {name: f"{HERE}/audio/{name}.flac" for name in ("conversation", "meeting", "anna", "ben")}
    with gr.Blocks(title="Who speaks", analytics_enabled=False, delete_cache=(SWEEP_SECONDS, KEEP_SECONDS)) as page:
        visit = gr.State(None, time_to_live=KEEP_SECONDS)
        gr.Markdown(INTRODUCTION)
        gr.Markdown("## 1. Who speaks when?")
        with gr.Row():
            with gr.Column(min_width=300):
                recording = gr.Audio(label=f"Recording, up to {MAX_SECONDS // 60} minutes", **audio)
                files, labels = (
                    [example["conversation"], example["meeting"]],
                    ["A conversation of four", "Anna and Ben at once"],
                )
                gr.Examples(files, recording, label="Or choose one", example_labels=labels)
                choices = [("count them", 0), *((str(number), number) for number in range(1, MAX_TALKERS + 1))]
                num_talkers = gr.Dropdown(choices, value=0, label="How many talkers?")
                find = gr.Button("Find the talkers", variant="primary")
            with gr.Column(scale=2, min_width=300):
                gr.render(visit)(show_talkers)
        gr.Markdown("## 2. Which of them is a voice that you know?")
        with gr.Row():
            with gr.Column(min_width=300):
                name = gr.Textbox(label="Name", max_length=30)
                voice = gr.Audio(label="This person alone, a few seconds", **audio)
                files = [["Anna", example["anna"]], ["Ben", example["ben"]]]
                gr.Examples(files, [name, voice], label="Or choose one", example_labels=["Anna alone", "Ben alone"])
                gr.Markdown(CONSENT)
                with gr.Row():
                    enrolling = gr.Button("Enrol the voice", variant="primary")
                    forgetting = gr.Button("Forget all voices")
            with gr.Column(scale=2, min_width=300):
                gr.render(visit)(show_voices)
        find.click(find_talkers, [recording, num_talkers, visit], visit)
        enrolling.click(enrol, [name, voice, visit], visit)
        forgetting.click(forget, visit, visit)
    return page


def main() -> None:
    theme = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # of the browser, not of a CDN
    page = build().queue(default_concurrency_limit=1, max_size=MAX_WAITING)
    page.launch(max_file_size=MAX_MEGABYTES * 2**20, ssr_mode=False, theme=theme, footer_links=[])


if __name__ == "__main__":
    main()
