# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""What mkdocs does beyond its settings, when it builds the documentation.

Pages link to files of the repository, as is right on a forge. The site has each of these files as a page under
`repository/`, so that it is complete by itself. Docstrings are in the style of Transformers: "[`CSCModel`]" becomes a
link, and types lose their marks.
"""

import json
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".toml": "toml"}
SHOWN_AS_THEY_ARE = {".png", ".svg", ".flac", ".wav"}

_FENCE = re.compile(r"^(```.*?^```)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")
_REFERENCE = re.compile(r"\[<code>(~?)([\w.]+)</code>\]")
_TYPE = re.compile(r"(\(<code>)(`[^<]*)</code>(?:, default: <code>.*?</code>)?")
"""The type of a parameter in Transformers' style, "`int`, *optional*", with the default that is said twice."""

_origins: dict[str, str] = {}
"""The path in the repository of each page that is not from docs/."""

_names: dict[str, str] = {}
"""The full name of each class or function that has its own entry in the API."""


def on_files(files, config):
    """Add the files of the repository that pages link to, directly or from one to the next."""
    _origins.clear()
    for page in (ROOT / "docs" / "api").glob("*.md"):
        entries = re.findall(r"^::: ([\w.]+\.([A-Z]\w+))$", page.read_text(encoding="utf-8"), re.MULTILINE)
        _names.update((short, name) for name, short in entries)
    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    waiting += ["CONTRIBUTING.md", "CHANGELOG.md"]  # in the navigation
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        if not path.startswith("docs/"):
            _add(path, files, config)
        for target in _links(path):
            if target not in seen and (ROOT / target).exists():
                seen.add(target)
                waiting.append(target)
    return files


def on_page_markdown(markdown, page, config, files):
    """Let links lead to the pages that stand for files of the repository."""
    origin = _origins.get(page.file.src_uri)
    if origin is not None:
        page.meta["search"] = {"exclude": True}

    def follow(link: re.Match) -> str:
        target = _resolve(origin or f"docs/{page.file.src_uri}", link[2])
        if not (ROOT / target).exists():
            return link[0]  # mkdocs says that it leads nowhere
        uri = posixpath.relpath(_uri(target), posixpath.dirname(page.file.src_uri))
        return f"{link[1]}{uri}{link[3] or ''}{link[4]}"

    parts = _FENCE.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(follow, part) for part in parts)


def on_page_content(html, page, config, files):
    """Let the names in docstrings lead to what they name."""

    def refer(found: re.Match) -> str:
        name = found[2]
        here = re.search(rf'id="(csc_hf\.(?:\w+\.)*{re.escape(name)})"', html)
        head, _, rest = name.partition(".")
        identifier = here[1] if here else ".".join(filter(None, (_names.get(head, head), rest)))
        shown = name.rpartition(".")[2] if found[1] else name
        return f'<autoref identifier="{identifier}" optional><code>{shown}</code></autoref>'

    return _REFERENCE.sub(refer, _TYPE.sub(lambda found: found[1] + re.sub("[`*]", "", found[2]) + "</code>", html))


def _resolve(page: str, target: str) -> str:
    """The path in the repository of a link on a page."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), target))


def _links(path: str) -> list[str]:
    """The paths in the repository that a page links to."""
    if (ROOT / path / "README.md").is_file():
        path = f"{path}/README.md"
    if not path.endswith((".md", ".ipynb")):
        return []
    text = _FENCE.sub("", _markdown(ROOT / path))
    return [_resolve(path, link[2]) for link in _LINK.finditer(text)]


def _markdown(file: Path) -> str:
    """The text of a page, or of a notebook."""
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".ipynb":
        return text
    cells = [("".join(cell["source"]), cell["cell_type"]) for cell in json.loads(text)["cells"]]
    return "\n\n".join(source if kind == "markdown" else f"```python\n{source}\n```" for source, kind in cells)


def _uri(path: str) -> str:
    """Where a file or folder of the repository is in the site."""
    if path == "README.md":
        return "index.md"
    if path == "docs" or path.startswith("docs/"):
        return posixpath.relpath(path, "docs")
    if (ROOT / path / "README.md").is_file():
        path = f"{path}/README.md"
    if (ROOT / path).is_dir():
        return f"repository/{path}/index.md"
    if path.endswith(".md") or Path(path).suffix in SHOWN_AS_THEY_ARE:
        return f"repository/{path}"
    return f"repository/{path}.md"


def _add(path: str, files, config) -> None:
    uri, file = _uri(path), ROOT / path
    if uri in files.src_uris:
        return
    if (file / "README.md").is_file():
        path, file = f"{path}/README.md", file / "README.md"
    if file.is_dir():
        names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in file.iterdir())
        names = [name for name in names if not name.startswith((".", "__pycache__"))]
        content = f"# {path}\n\n" + "\n".join(f"- `{name}`" for name in names)
    elif file.suffix in (".md", ".ipynb"):
        content = _markdown(file)
    elif file.suffix in SHOWN_AS_THEY_ARE:
        files.append(File.generated(config, uri, abs_src_path=str(file)))
        return
    else:
        language = LANGUAGES.get(file.suffix, "text")
        content = f"# {path}\n\n````{language}\n{file.read_text(encoding='utf-8')}\n````\n"
    _origins[uri] = path
    files.append(File.generated(config, uri, content=content))
