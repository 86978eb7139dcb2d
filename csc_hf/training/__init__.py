# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Pre-trains and fine-tunes CSC models: arguments, training loop, checkpoints, logs, pushes to the Hub."""
