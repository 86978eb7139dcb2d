# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
The demo page of csc_hf, a Hugging Face Space: who speaks when in a recording, what each talker says, and which of them
is a voice that you know. It runs on one CPU core and needs no network.

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
from matplotlib.figure import Figure
from transformers import Pipeline, pipeline

from csc_hf import CSCForPreTraining
from csc_hf.audio import SAMPLING_RATE, SILENCE_POWER, power, read_blocks
from csc_hf.diarization import Diarization, Turn
from csc_hf.evaluation.calibration import Calibration
from csc_hf.files import escape_unprintable
from csc_hf.plots import COLOURS, plot_attention, plot_diarization

HERE = Path(__file__).resolve().parent
MODEL = os.environ.get("CSC_HF_MODEL") or HERE.parents[1] / "model_cards" / "csc-small"

MAX_SIZE = "50mb"  # of an upload
MAX_SECONDS = 120  # of a recording
MAX_TALKERS = len(COLOURS)
MAX_VOICES = 4  # that a visitor enrols
MAX_VISITORS = 20  # that wait, and whose recordings are in memory
KEEP_SECONDS, SWEEP_SECONDS = 3600, 60  # how long files and enrolled voices stay, and how often files are looked for

model = CSCForPreTraining.from_pretrained(MODEL).eval()
diarize = pipeline("speaker-diarization", model=model)
calibration = Calibration.load(model, enrolment="attention")
if calibration is None:
    raise SystemExit(f"{MODEL} has no calibration for enrolment by attention: evaluate_verification.py stores one")


@dataclass
class Visit:
    """
    What one visitor has brought: a recording, float32 (samples,), and the voice of each of its talkers, int16
    (samples,); and enrolled voices, float32 (samples,). The pipeline is theirs alone, and shares the model.
    """

    verify: Pipeline = field(
        default_factory=lambda: pipeline("speaker-verification", model=model, enrolment="attention")
    )
    recording: np.ndarray | None = None
    diarization: Diarization | None = None
    talkers: dict[str, np.ndarray] = field(default_factory=dict)
    voices: dict[str, np.ndarray] = field(default_factory=dict)


def find_talkers(path: str | None, num_talkers: int, visit: Visit | None) -> Visit:
    recording = read(path, "recording")
    number = {"num_speakers": num_talkers} if num_talkers else {"max_speakers": MAX_TALKERS}
    talkers, embeddings = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        found = diarize(recording, voices=folder, **number)
        for name, embedding in found["embeddings"].items():
            embeddings[title(name)] = embedding
            talkers[title(name)] = np.int16(32767 * soundfile.read(f"{folder}/{name}.wav")[0].clip(-1, 1))
    turns = [Turn(**turn | {"speaker": title(turn["speaker"])}) for turn in found["turns"]]
    diarization = Diarization(turns, embeddings, len(recording) / SAMPLING_RATE)
    return replace(visit or Visit(), recording=recording, diarization=diarization, talkers=talkers)


def title(speaker: str) -> str:
    return speaker.replace("speaker_", "Talker ")


def enrol(name: str, path: str | None, visit: Visit | None) -> Visit:
    visit, name = visit or Visit(), " ".join(name.split())
    if not name:
        raise refusal("Whose voice is it? Type a name.")
    if len(visit.voices) == MAX_VOICES and name not in visit.voices:
        raise refusal(f"{MAX_VOICES} voices are enrolled, and no more fit. Forget them first.")
    voice = read(path, f"recording of {name} alone")
    visit.verify.enrol(name, voice)
    return replace(visit, voices=visit.voices | {name: voice})


def read(path: str | None, what: str) -> np.ndarray:
    """Decode an upload, no further than it is allowed to go on."""
    if path is None:
        raise refusal(f"There is no {what} yet: upload one, record one, or choose an example.")
    name, waveform = Path(path).name, np.zeros(0, np.float32)
    try:
        for block in read_blocks(path):
            waveform = np.append(waveform, block)
            if len(waveform) > MAX_SECONDS * SAMPLING_RATE:
                break
    except (ValueError, OSError) as error:
        raise refusal(f"{name} holds no audio that can be read: try a WAV, FLAC or MP3 file.") from error
    if len(waveform) > MAX_SECONDS * SAMPLING_RATE:
        raise refusal(f"{name} is longer than {MAX_SECONDS} seconds: bring a part of it.")
    if not len(waveform) or power(waveform) < SILENCE_POWER:
        raise refusal(f"{name} is silent. Is the microphone on?")
    return waveform


def refusal(message: str) -> gr.Error:
    return gr.Error(html.escape(message), print_exception=False)


def compare(visit: Visit) -> list[dict]:
    """What the pipeline says of each enrolled voice and each talker, best first."""
    embeddings = visit.diarization.embeddings.items() if visit.voices else ()
    pairs = [pair | {"talker": talker} for talker, embedding in embeddings for pair in visit.verify.compare(embedding)]
    return sorted(pairs, key=lambda pair: -pair["score"])


def recognise(pairs: list[dict]) -> dict[str, str]:
    """The name of each talker whose voice is enrolled. A voice is one talker at most: the best pairs come first."""
    names: dict[str, str] = {}
    for pair in pairs:
        if pair["decision"] and pair["talker"] not in names and pair["speaker"] not in names.values():
            names[pair["talker"]] = pair["speaker"]
    return names


def most_like(name: str, pairs: list[dict]) -> str:
    """The talker who an enrolled voice is; if it is none, the one that it is most like."""
    talkers = [talker for talker, who in recognise(pairs).items() if who == name]
    return [*talkers, *(pair["talker"] for pair in pairs if pair["speaker"] == name)][0]


# --- what is shown ---------------------------------------------------------------------------------------------------

INTRODUCTION = f"""
# Who speaks, when others speak too

Bring a recording in which people talk, one after the other or at once. This page finds the talkers, lets you hear each
of them alone, and says which of them is a voice that you know. Recordings stay on this server and are deleted after
{KEEP_SECONDS // 60} minutes.

## 1. Who speaks when?
"""
TRIALS = {"mix0": "two people talking at once, equally loud", "clean": "people talking alone"}
STYLE = ".prose td, .prose th { overflow-wrap: normal; word-break: normal }"  # on narrow screens
MEANING = f"""
A score is a cosine, from −1 to 1. From {calibration.threshold:.2f} up, one person is likelier than two. This threshold
was learnt on {calibration.num_target + calibration.num_nontarget:,} comparisons of voices with recordings of
{TRIALS.get(calibration.condition, calibration.condition)}, and gets {calibration.eer:.0%} of them wrong. So decide
nothing about anybody by this page.
"""


def plain(name: str) -> str:
    """A name that a visitor has typed, so that Markdown shows it as it is."""
    return re.sub(r"([^\w\s])", r"\\\1", name)


def in_words(llr: float) -> str:
    ratio = math.exp(min(abs(llr), math.log(1000)))
    times = "over 1000" if ratio > 999 else f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"
    return f"{times} times likelier to be {'one person than two' if llr > 0 else 'two people than one'}"


def verdict(name: str, pairs: list[dict]) -> str:
    """Markdown: which talker an enrolled voice is, and why."""
    own = [pair for pair in pairs if pair["speaker"] == name]
    talker = most_like(name, pairs)
    who = recognise(pairs).get(talker)
    heading = f"{plain(name)} is {talker.lower()}"
    if not own[0]["decision"]:
        heading = f"{plain(name)} is none of the talkers"
    elif who != name:
        heading = f"{plain(name)} could be {talker.lower()}, but {plain(who)} is likelier"
    rows = [f"| {pair['talker']} | {pair['score']:.2f} | {in_words(pair['llr'])} |" for pair in own]
    question = f"Where the model looks in the recording of {plain(name)} to recognise {talker.lower()}:"
    return "\n".join([f"### {heading}", "| | score | what it means |", "| --- | --- | --- |", *rows, "", question])


def show_talkers(visit: Visit | None) -> None:
    if visit is None or visit.recording is None:
        gr.Markdown("*The talkers will be here, each in a colour.*")
        return
    gr.Markdown(f"### {len(visit.talkers) or 'No'} talker{'s' * (len(visit.talkers) != 1)}")
    figure = Figure(figsize=(7, 2.5), layout="constrained", dpi=200)
    plot_diarization(visit.diarization, visit.recording, figure.subplots())
    gr.Plot(figure, show_label=False)
    names = recognise(compare(visit))
    for colour, (talker, voice) in zip(COLOURS, visit.talkers.items()):
        label = f"{talker}, {names[talker]}" if talker in names else talker
        waveform = gr.WaveformOptions(waveform_color=colour)
        gr.Audio((SAMPLING_RATE, voice), label=label, buttons=["download"], waveform_options=waveform)


def show_voices(visit: Visit | None) -> None:
    if visit is None or not visit.voices:
        gr.Markdown("*Enrolled voices will be here, each compared with the talkers.*")
    elif not visit.talkers:
        lacking = "Now find the talkers of a recording" if visit.recording is None else "The recording has no talkers"
        gr.Markdown(f"Enrolled: {', '.join(map(plain, visit.voices))}. {lacking}.")
    else:
        pairs = compare(visit)
        for name in visit.voices:
            gr.Markdown(verdict(name, pairs))
            talker = most_like(name, pairs)
            colour = COLOURS[list(visit.talkers).index(talker)]
            figure = Figure(figsize=(7, 1.9), layout="constrained", dpi=200)
            start, axes = visit.voices[name][: 10 * SAMPLING_RATE], figure.subplots()
            plot_attention(model, visit.diarization.embeddings[talker], start, axes, colour)
            gr.Plot(figure, show_label=False)
        gr.Markdown(MEANING)


def build() -> gr.Blocks:
    audio = {"sources": ["upload", "microphone"], "type": "filepath", "buttons": []}
    with gr.Blocks(title="Who speaks", analytics_enabled=False, delete_cache=(SWEEP_SECONDS, KEEP_SECONDS)) as page:
        visit = gr.State(None, time_to_live=KEEP_SECONDS)
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(min_width=300):
                recording = gr.Audio(label=f"Recording, up to {MAX_SECONDS // 60} minutes", **audio)
                numbers = [("count them", 0), *range(1, MAX_TALKERS + 1)]
                num_talkers = gr.Dropdown(numbers, value=0, label="How many talkers?", render=False)
                examples = [[f"{HERE}/audio/conversation.flac", 0], [f"{HERE}/audio/meeting.flac", 2]]
                labels = ["A conversation of four", "Anna and Ben at once"]
                gr.Examples(examples, [recording, num_talkers], label="Or choose one", example_labels=labels)
                num_talkers.render()
                find = gr.Button("Find the talkers", variant="primary")
            with gr.Column(scale=2, min_width=300):
                gr.render(visit, concurrency_id="model")(show_talkers)
        gr.Markdown("## 2. Which of them is a voice that you know?")
        with gr.Row():
            with gr.Column(min_width=300):
                name = gr.Textbox(label="Name", max_length=30)
                voice = gr.Audio(label="This person alone", **audio)
                files = [[name, f"{HERE}/audio/{name.lower()}.flac"] for name in ("Anna", "Ben")]
                gr.Examples(files, [name, voice], label="Or choose one", example_labels=["Anna alone", "Ben alone"])
                gr.Markdown(
                    "A few seconds are enough. A voice identifies a person: have their consent. "
                    "It is forgotten after your visit."
                )
                with gr.Row():
                    enrolling = gr.Button("Enrol the voice", variant="primary")
                    forgetting = gr.Button("Forget all voices")
            with gr.Column(scale=2, min_width=300):
                gr.render(visit, concurrency_id="model")(show_voices)
        find.click(find_talkers, [recording, num_talkers, visit], visit, concurrency_id="model")
        enrolling.click(enrol, [name, voice, visit], visit, concurrency_id="model")
        forgetting.click(lambda visit: visit and replace(visit, verify=Visit().verify, voices={}), visit, visit)
    return page


def main() -> None:
    escape_unprintable()
    theme = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # of the browser, not of a CDN
    options = {"theme": theme, "footer_links": [], "ssr_mode": False, "max_file_size": MAX_SIZE, "css": STYLE}
    build().queue(max_size=MAX_VISITORS).launch(state_session_capacity=MAX_VISITORS, **options)


if __name__ == "__main__":
    main()
