# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Starts `csc-hf`. This module stands outside of csc_hf because importing that package imports torch and Transformers,
which takes seconds: `csc-hf --help` has to answer at once."""

import importlib.util
import sys
from pathlib import Path


def main() -> None:
    """Load `csc_hf/cli/__init__.py` by its path, without `csc_hf/__init__.py`, and run its command line."""
    package = importlib.util.find_spec("csc_hf")
    assert package is not None and package.origin is not None  # it is installed together with this module
    folder = Path(package.origin).parent / "cli"
    specification = importlib.util.spec_from_file_location(
        "csc_hf.cli", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert specification is not None and specification.loader is not None  # as for any .py file
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    try:
        specification.loader.exec_module(module)
    except ModuleNotFoundError as error:
        print(f"csc-hf: {error.name} is not installed: pip install 'csc-hf[cli]'", file=sys.stderr)
        sys.exit(2)
    module.app(prog_name="csc-hf")


if __name__ == "__main__":
    main()
