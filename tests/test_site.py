# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""The site of the documentation, as mkdocs builds it from mkdocs.yml."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import csc_hf

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.release


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site. Strict: a page without a place, a link or a name that leads nowhere is an error."""
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return folder


class Page(HTMLParser):
    """The links of a page, what the browser loads with it, and the anchors in it."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.loaded, self.anchors = set(), set(), set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if "id" in values:
            self.anchors.add(values["id"])
        if tag == "a" and "href" in values:
            self.links.add(values["href"])
        elif tag == "link" and values.get("rel") not in ("prev", "next", "canonical"):
            self.loaded.add(values["href"])
        elif "src" in values:
            self.loaded.add(values["src"])


def test_nothing_is_loaded_from_elsewhere(site):
    for path in site.rglob("*.html"):
        for target in Page(path).loaded:
            assert not re.match(r"(\w+:)?//", target), f"{path.name} loads {target}"
    for path in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//", path.read_text(encoding="utf-8")), (
            f"{path} loads from a server"
        )


def test_every_link_leads_somewhere(site):
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 40
    for path, page in pages.items():
        for link in page.links | page.loaded:
            if re.match(r"\w+:", link):
                continue
            target, _, anchor = link.partition("#")
            file = (path.parent / target).resolve() if target else path
            file = file / "index.html" if file.is_dir() else file
            assert file.is_file(), f"{path.relative_to(site)} links to {link}"
            if anchor and not anchor.startswith("__codelineno"):
                assert anchor in pages[file].anchors, f"{path.relative_to(site)} links to {link}"


def test_the_api_has_every_public_name(site):
    anchors = {anchor for path in (site / "api").glob("*.html") for anchor in Page(path).anchors}
    named = {anchor.rpartition(".")[2] for anchor in anchors if anchor.startswith("csc_hf.")}
    assert set(csc_hf.__all__) - {"PRESETS", "CSCPreTrainedModel"} <= named


def test_types_and_names_in_docstrings_are_read_as_in_transformers(site):
    text = (site / "api" / "models.html").read_text(encoding="utf-8")
    assert "*optional*" not in text and "<code>`" not in text and "[<code>" not in text
    assert 'href="#csc_hf.modeling_csc.CSCModel"' in text


def test_examples_in_docstrings_are_code(site):
    text = (site / "api" / "voices.html").read_text(encoding="utf-8")
    assert "<blockquote>" not in text and "LiveExtractor" in text
    for path in (site / "api").glob("*.html"):
        assert "&gt;&gt;&gt;" not in re.sub(r"<pre.*?</pre>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_files_of_the_repository_have_pages(site):
    assert "class CSCModel" in re.sub("<[^>]*>", "", (site / "repository/csc_hf/modeling_csc.py.html").read_text())
