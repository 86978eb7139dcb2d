# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""An installed package that cannot be imported is named in one line.

Transformers imports what it finds installed, torchaudio and torchvision among others. One that was built for another
torch ends `import csc_hf` with an error of its loader, which names neither the package nor a remedy.
"""

import importlib.metadata
from types import TracebackType

NOT_AT_FAULT = ("csc_hf", "transformers", "importlib")


def explain(error: BaseException) -> str | None:
    """Which installed package broke an import, and what to do; None if it was none that Transformers imports."""
    package = _first_beyond_transformers(error)
    if package is None:
        return None
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return (
        f"{_with_version(package)} is installed but cannot be imported beside {_with_version('torch')} ({reason}): "
        f"install the version that was built for it, or run `pip uninstall {package}` if nothing else needs it"
    )


def _first_beyond_transformers(error: BaseException) -> str | None:
    """The package whose code was entered first after that of csc_hf and Transformers."""
    while error.__cause__ is not None:  # Transformers wraps errors of what it imports late
        error = error.__cause__
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        package = trace.tb_frame.f_globals.get("__name__", "").split(".")[0]
        if package not in NOT_AT_FAULT:
            return package
        trace = trace.tb_next
    return None


def _with_version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:  # its distribution has another name, such as Pillow's PIL
        return package
