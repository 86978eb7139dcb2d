# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""The version of the package, in one place."""

__version__ = "0.2.0.dev0"
