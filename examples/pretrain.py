# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""
Pre-trains CSC on streamed mixtures of single-speaker audio, with Accelerate.

    accelerate launch examples/pretrain.py                                   # the demo: minutes on two CPU cores
    accelerate launch examples/pretrain.py --config examples/configs/base.yaml --train_data path/to/parquet_folder
    accelerate launch examples/pretrain.py --train_data path/to/data --eval_split none --model.preset small

Every option can stand in the YAML file that --config names, and on the command line, which wins. Fields of the model
and of the mixtures stand in the file's mappings `model` and `mixing`, and have that name in front on the command line:
--mixing.seconds 3. In the file, `train_data` may also be several data sets: a mapping from names to their `path`,
`probability`, `split`, columns, ...

The engine is `csc_hf.training`: `arguments`, `corpora` (the data), `pretrainer` (the loop), `meter` (the logs),
`checkpoints`, `hub`. To change a step of the loop, derive from `Pretrainer`.
"""

import logging
import sys
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from csc_hf.files import escape_unprintable
from csc_hf.training.arguments import parse_pretraining_arguments
from csc_hf.training.pretrainer import Pretrainer

DEMO = Path(__file__).resolve().parent / "configs" / "demo.yaml"


def main(argv: list[str] | None = None) -> int:
    escape_unprintable()
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("csc_hf").setLevel(logging.INFO)  # other packages log each request
    disable_progress_bar()  # of saving, which would break the line of the training's
    return Pretrainer(parse_pretraining_arguments(argv, __doc__, demo=DEMO)).run()


if __name__ == "__main__":
    sys.exit(main())
