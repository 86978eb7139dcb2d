# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""The page of examples/browser, in Debian's Chromium, driven as a person would."""

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from selenium import webdriver

from csc_hf import CSCConfig, CSCForPreTraining
from csc_hf.export import export_onnx
from csc_hf.long_audio import separate

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
pytestmark = [
    pytest.mark.release,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None, reason="no Chromium: apt-get install chromium chromium-driver"
    ),
]

# The model says that both slots hold somebody, whatever it hears.
SIZES = dict(hidden_size=16, lstm_hidden_size=16, num_attention_heads=2, num_hidden_layers=1, num_speaker_layers=1)
SIZES |= dict(speaker_hidden_size=32, speaker_embedding_size=32, mask_hidden_size=16, num_mel_bins=20)


@pytest.fixture(scope="module")
def model() -> CSCForPreTraining:
    torch.manual_seed(0)
    model = CSCForPreTraining(CSCConfig.small(**SIZES)).eval()
    with torch.no_grad():
        model.csc.speaker_branch.activity.bias.fill_(5)
        model.csc.frame_activity.weight.mul_(20)
    return model


@pytest.fixture(scope="module")
def site(model, tmp_path_factory):
    """A folder like examples/, served as files, and its address."""
    folder = tmp_path_factory.mktemp("site")
    page = folder / "browser"
    shutil.copytree(ROOT / "examples" / "browser", page, ignore=shutil.ignore_patterns("node_modules", "model"))
    shutil.copytree(ROOT / "examples" / "audio", folder / "audio")
    installed = ROOT / "examples" / "browser" / "node_modules"
    if installed.exists():
        (page / "node_modules").symlink_to(installed)
    else:
        subprocess.run(["npm", "install", "--prefix", str(page)], check=True, capture_output=True, timeout=300)
    export_onnx(model, page / "model", ["separation"])
    handler = functools.partial(QuietHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


class Page:
    """The page in a browser of its own. If the environment variable SCREENSHOTS names a folder, `look` fills it."""

    def __init__(self, address: str, folder: Path):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
        flags += " disable-component-update disable-sync disable-audio-output"
        flags += " autoplay-policy=no-user-gesture-required window-size=1100,1000"
        for flag in [*flags.split(), f"user-data-dir={folder / 'profile'}"]:
            options.add_argument(f"--{flag}")
        options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        self.driver.set_script_timeout(60)
        self.folder = folder
        self.driver.get(f"{address}/browser/")

    def find(self, selector: str):
        return self.driver.find_element("css selector", selector)

    def state(self) -> str:
        return self.find("body").get_attribute("data-state")

    def wait_for(self, condition, seconds: float = 200):
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, f"{self.state()}: {self.find('main').text}"
            time.sleep(0.05)
        return found

    def open(self, file: Path, state: str) -> None:
        """Choose a file; wait for a state."""
        self.find("#file").send_keys(str(file))
        self.wait_for(lambda: self.state() == state)

    def look(self, name: str) -> None:
        if folder := os.environ.get("SCREENSHOTS"):
            self.driver.save_screenshot(str(Path(folder) / f"{name}.png"))

    def saved(self, name: str) -> np.ndarray:
        """The waveform of a download, float32 (samples,)."""
        file = self.folder / name
        self.wait_for(file.exists)
        waveform, sampling_rate = soundfile.read(file, dtype="float32")
        assert sampling_rate == 16000
        return waveform

    def requests(self) -> list[str]:
        """The addresses that the browser has asked for since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


@pytest.fixture
def page(site, tmp_path):
    page = Page(site[1], tmp_path)
    yield page
    page.driver.quit()


def test_a_recording_from_the_drop_to_the_voices(page, site, model):
    assert page.state() == "start" and "Nothing leaves this machine" in page.find("footer").text
    page.wait_for(lambda: re.search(r"Model: csc_hf .*, \d+\.\d MB", page.find("#model").text))
    page.look("start")
    page.driver.execute_script("dispatchEvent(new Event('dragover'))")
    page.look("dragging")
    page.driver.execute_script("document.body.removeAttribute('data-dragging')")

    page.open(site[0] / "audio" / "meeting.flac", "result")
    assert page.find("#found").text == "Two talkers" and "meeting.flac, 0:05" in page.find("#name").text
    rows = page.driver.find_elements("css selector", ".voice")
    assert [row.text.split("\n")[0] for row in rows] == ["Everything", "Talker 1", "Talker 2"]
    assert page.find("#room").text == "The model tells 2 voices apart. If more people speak, they share these."
    page.look("result")

    # The picture shows the spectrogram and a bar in the colour of each voice.
    pixels = page.driver.execute_script(
        "const c = document.getElementById('picture');"
        "return Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
    )
    colours, counts = np.unique(np.reshape(pixels, (-1, 4))[:, :3], axis=0, return_counts=True)
    often = {tuple(colour) for colour, count in zip(colours.tolist(), counts, strict=True) if count > 200}
    assert len(colours) > 500 and {(0x39, 0xC2, 0xFF), (0xFF, 0xB0, 0x20)} <= often

    # Play, change voices, jump, pause.
    page.find("#play").click()
    page.wait_for(lambda: page.find("#time").text.startswith("0:01"))
    rows[2].click()
    page.find("#picture").click()  # in the middle
    page.wait_for(lambda: page.find("#time").text.startswith("0:02"))
    page.find("#play").click()
    assert page.find("#play").get_attribute("aria-label") == "Play"
    page.look("paused")
    position = page.find("#time").text
    time.sleep(1.2)
    assert page.find("#time").text == position

    # The voices are those that `separate` gives.
    meeting, _ = soundfile.read(site[0] / "audio" / "meeting.flac", dtype="float32")
    expected = separate(model, meeting).sources
    for link in page.driver.find_elements("css selector", ".voice a"):
        link.click()
    voices = np.stack([page.saved(f"meeting - Talker {number}.wav") for number in (1, 2)])
    assert min(np.abs(voices - expected[order]).max() for order in ([0, 1], [1, 0])) < 1e-3

    # All that was asked for lies beside the page.
    elsewhere = [
        url for url in page.requests() if url.startswith(("http", "ws")) and not url.startswith(f"{site[1]}/")
    ]
    assert not elsewhere


def test_a_long_recording_in_stereo_at_another_rate(page, tmp_path, site):
    meeting, _ = soundfile.read(site[0] / "audio" / "meeting.flac", dtype="float32")
    long = np.resize(meeting, 23 * 16000)
    soundfile.write(tmp_path / "long.wav", np.stack([long, long / 2], axis=1), 16000)
    page.find("#file").send_keys(str(tmp_path / "long.wav"))
    page.wait_for(lambda: float(page.find("#progress").get_attribute("value") or 0) > 0)
    page.look("working")
    page.wait_for(lambda: page.state() == "result")
    assert "0:23" in page.find("#name").text
    page.look("long")
    for link in page.driver.find_elements("css selector", ".voice a"):
        link.click()
    voices = [page.saved(f"long - Talker {number}.wav") for number in (1, 2)]
    # All of it is there, at a level of which the mixture is made.
    mixture = long * 0.75
    assert {len(voice) for voice in voices} == {len(long)}
    assert all(np.abs(voice[-16000:]).max() > 0.001 for voice in voices)
    assert np.square(mixture - sum(voices)).sum() < np.square(mixture).sum()


def test_cancel_and_try_the_example(page):
    page.find("#example").click()
    page.wait_for(lambda: page.state() == "working")
    page.find("#cancel").click()
    assert page.state() == "start"
    page.find("#example").click()
    page.wait_for(lambda: page.state() == "result")
    assert "meeting.flac" in page.find("#name").text


def test_a_recording_takes_the_place_of_one_at_work(page, tmp_path, site):
    meeting, _ = soundfile.read(site[0] / "audio" / "meeting.flac", dtype="float32")
    soundfile.write(tmp_path / "long.wav", np.resize(meeting, 60 * 16000), 16000)
    page.find("#file").send_keys(str(tmp_path / "long.wav"))
    page.wait_for(lambda: float(page.find("#progress").get_attribute("value") or 0) > 0)
    page.open(site[0] / "audio" / "anna.flac", "result")
    assert page.find("#name").text == "anna.flac, 0:05"
    page.find(".voice a").click()
    anna, _ = soundfile.read(site[0] / "audio" / "anna.flac")
    assert len(page.saved("anna - Talker 1.wav")) == len(anna)


def test_what_cannot_be_separated_is_told(page, site, tmp_path):
    (tmp_path / "notes.wav").write_text("no audio")
    (tmp_path / "empty.wav").touch()
    soundfile.write(tmp_path / "silence.wav", np.zeros(16000), 16000)
    for name, text in (("notes", "knows no such audio"), ("empty", "is empty"), ("silence", "every sample is zero")):
        page.open(tmp_path / f"{name}.wav", "problem")
        page.wait_for(lambda name=name: page.find("#problem-title").text == f"{name}.wav cannot be read")
        assert text in page.find("#problem-text").text
    page.look("problem")
    page.open(site[0] / "audio" / "anna.flac", "result")  # and it goes on


def test_without_a_model(site, tmp_path):
    folder, address = site
    hidden = folder / "hidden"
    (folder / "browser" / "model").rename(hidden)
    page = Page(address, tmp_path)
    try:
        page.open(folder / "audio" / "anna.flac", "problem")
        assert page.find("#problem-title").text == "The model cannot be loaded"
        assert page.find("#problem-command").text == "csc-hf export model_cards/csc-small --out examples/browser/model"
        page.look("no_model")
    finally:
        page.driver.quit()
        hidden.rename(folder / "browser" / "model")


def test_the_browser_lets_nothing_out(page, site):
    """Neither the page nor its worker reaches another server, though it is there and answers."""
    handler = functools.partial(QuietHandler, directory=site[0])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        attempt = "fetch({url}, {{ mode: 'no-cors' }}).then(() => {done}('reached'), () => {done}('blocked'))"
        results = {}
        for name, server in (("other", other.server_port), ("own", int(site[1].rsplit(":", 1)[1]))):
            url = json.dumps(f"http://127.0.0.1:{server}/audio/make.py")
            in_worker = json.dumps(attempt.format(url=url, done="postMessage"))
            results[name] = page.driver.execute_async_script(
                f"const done = arguments[0]; {attempt.format(url=url, done='done')}"
            )
            results[name + ", worker"] = page.driver.execute_async_script(
                f"const done = arguments[0]; const file = new Blob([{in_worker}], {{ type: 'text/javascript' }});"
                "new Worker(URL.createObjectURL(file), { type: 'module' }).onmessage = ({ data }) => done(data);"
            )
        other.shutdown()
    assert results == {"other": "blocked", "other, worker": "blocked", "own": "reached", "own, worker": "reached"}
