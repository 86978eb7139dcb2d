# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Pre-train and fine-tune CSC models. To read in this order:

`arguments` (the options), `corpora` (the data they name), `pretrainer` (the loop), `meter` (what is logged),
`collapse` and `visualize` (what is watched), `checkpoints`, `hub` and `upload` (what is written). Then `finetuning`,
which the fine-tuning scripts share, and `distributed` and `cpu`, which start a process.
"""
