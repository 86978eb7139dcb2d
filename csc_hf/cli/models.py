# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Which model a command uses, and how it is loaded."""

import logging
import os
from pathlib import Path
from typing import Any

from .errors import explain, fail

MODEL_VARIABLE = "CSC_HF_MODEL"
SHIPPED_MODEL = "csc-small"


def default_model() -> str:
    """The model that is used without `--model`.

    Raises:
        ValueError: There is none, or the cache has several.
    """
    if name := os.environ.get(MODEL_VARIABLE):
        return name
    for clone in (Path(__file__).parents[2], Path.cwd()):
        folder = clone / "model_cards" / SHIPPED_MODEL
        if (folder / "model.safetensors").is_file():
            return str(folder)
    from huggingface_hub.constants import HF_HUB_CACHE

    cached = sorted(Path(HF_HUB_CACHE).glob(f"models--*--{SHIPPED_MODEL}"))
    names = ["/".join(path.name.split("--")[1:]) for path in cached]
    if len(names) == 1:
        return names[0]
    if names:
        raise ValueError(f"the cache holds {', '.join(names)}: choose one by --model or ${MODEL_VARIABLE}")
    raise ValueError(
        f"no model: {SHIPPED_MODEL} is neither in a clone of the repository nor in the cache of the Hub. Give "
        f"--model FOLDER or --model USER/NAME, or set {MODEL_VARIABLE}"
    )


class Warnings(logging.Handler):
    """Prints what this package warns of as lines of the command."""

    def emit(self, record: logging.LogRecord) -> None:
        fail(f"warning: {record.getMessage()}")


def keep_transformers_quiet() -> None:
    """Its warnings and progress bars, and those of huggingface_hub, would stand between the lines of the command."""
    from huggingface_hub.utils import logging as of_hub
    from transformers.utils import logging as of_transformers

    of_hub.set_verbosity_error()
    of_transformers.set_verbosity_error()
    of_transformers.disable_progress_bar()
    logger = logging.getLogger("csc_hf")
    if not any(isinstance(handler, Warnings) for handler in logger.handlers):
        logger.addHandler(Warnings(logging.WARNING))


def check_model(name: str | None) -> str:
    """The name of the model to load, which is a CSC model."""
    name = name or default_model()
    from ..configuration_csc import CSCConfig

    keep_transformers_quiet()
    if not Path(name).is_dir() and (Path(name).exists() or name.count("/") > 1 or name.startswith((".", "~", "/"))):
        raise ValueError(f"no folder {name!r} of a model: check the path")
    try:
        config, _ = CSCConfig.get_config_dict(name)
    except OSError as error:
        raise ValueError(f"cannot load a model from {name!r}: {explain(error)}") from error
    if not config:
        raise ValueError(f"cannot load a model from {name!r}: it holds no config.json")
    if config.get("model_type") != CSCConfig.model_type:
        raise ValueError(f"{name!r} is no CSC model but of type {config.get('model_type')!r}: choose another --model")
    return name


def check_comparison(name: str, kind: str | None, threshold: float | None, condition: str | None) -> None:
    """Raise a ValueError, before weights are loaded, unless the model can compare voices as the options say.

    Args:
        name: From `check_model`.
        kind: One of `csc_hf.evaluation.calibration.ENROLMENTS`; None: the pipeline's choice.
    """
    from ..configuration_csc import CSCConfig
    from ..enrolment import comparing_class
    from ..evaluation.calibration import calibrated_conditions, must_be_chosen
    from ..modeling_csc import CSCForPreTraining, CSCForSpeakerVerification, CSCModel

    config = CSCConfig.from_pretrained(name)
    own = comparing_class(config.architectures, CSCModel)
    needs = {"attention": CSCForPreTraining, "scorer": CSCForSpeakerVerification}
    if kind in needs and own is not needs[kind]:
        raise ValueError(f"--enrolment {kind} needs a checkpoint of {needs[kind].__name__}, and {name!r} is none")
    kind = kind or ("scorer" if own is CSCForSpeakerVerification else "mean")
    known = calibrated_conditions(config, kind)
    if condition is not None:
        if threshold is not None:
            raise ValueError("--threshold and --condition: give one, since a threshold replaces the calibration")
        if condition not in known:
            raise ValueError(
                f"--condition {condition}: the model has no such calibration for the enrolment {kind!r}, only "
                f"{', '.join(known) or 'none'}"
            )
    elif threshold is None and must_be_chosen(known):
        raise ValueError(
            f"the model has calibrations for {', '.join(known)} of the enrolment {kind!r}: choose one by --condition"
        )


def load_pipeline(task: str, name: str, **options: Any) -> Any:
    import transformers

    from .. import pipelines  # noqa: F401 (registers the tasks)

    create: Any = transformers.pipeline  # its types know the tasks of Transformers only
    return create(task, model=name, **options)


def load_model(name: str) -> Any:
    """A CSC model, of the class that it was saved as."""
    from .. import CSCConfig, modeling_csc

    architectures = CSCConfig.from_pretrained(name).architectures or ["CSCModel"]
    return getattr(modeling_csc, architectures[0]).from_pretrained(name)
