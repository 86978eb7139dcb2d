# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""How the site reads docstrings: examples that begin with `>>>` are code, with a fence around them or without."""

import griffe


class Docstrings(griffe.Extension):
    def on_instance(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring is not None:
            obj.docstring.value = "\n".join(fenced(obj.docstring.value.splitlines()))


def fenced(lines: list[str]) -> list[str]:
    """Lines in which each run from `>>>` to a blank line has a fence."""
    result: list[str] = []
    in_fence = in_example = False
    for line in [*lines, ""]:
        in_fence ^= line.lstrip().startswith("```")
        if not in_fence and not in_example and line.startswith(">>>"):
            result.append("```pycon")
            in_example = True
        if in_example and not line.strip():
            result.append("```")
            in_example = False
        result.append(line)
    return result[:-1]
