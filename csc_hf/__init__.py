# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Contrastive Separative Coding for Hugging Face Transformers."""

import importlib
import importlib.abc
import importlib.machinery
import sys
from typing import TYPE_CHECKING

__version__ = "0.2.0.dev0"

_MODULE_OF = {
    "CSCConfig": "configuration_csc",
    "CSCFeatureExtractor": "feature_extraction_csc",
    "CSCModel": "modeling_csc",
    "CSCModelOutput": "modeling_csc",
    "CSCPreTrainedModel": "modeling_csc",
    "CSCForPreTraining": "modeling_csc",
    "CSCForPreTrainingOutput": "modeling_csc",
    "CSCForXVector": "modeling_csc",
    "CSCForSequenceClassification": "modeling_csc",
    "CSCForAudioFrameClassification": "modeling_csc",
    "CSCForSpeechSeparation": "modeling_csc",
    "CSCSeparationOutput": "modeling_csc",
}

__all__ = sorted(_MODULE_OF)

if TYPE_CHECKING:
    from .configuration_csc import CSCConfig
    from .feature_extraction_csc import CSCFeatureExtractor
    from .modeling_csc import (
        CSCForAudioFrameClassification,
        CSCForPreTraining,
        CSCForPreTrainingOutput,
        CSCForSequenceClassification,
        CSCForSpeechSeparation,
        CSCForXVector,
        CSCModel,
        CSCModelOutput,
        CSCPreTrainedModel,
        CSCSeparationOutput,
    )


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'csc_hf' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


# --- registration with the Auto classes and the pipelines ---------------------------------------------------------
# Registering needs our classes, and these need torch: seconds that `import csc_hf` should not cost. So each Auto
# module of Transformers gets our classes once it is itself imported, which `from transformers import AutoModel` does;
# and so `from transformers import pipeline` gets our tasks.


def _register_config(auto) -> None:
    from .configuration_csc import CSCConfig

    auto.AutoConfig.register(CSCConfig.model_type, CSCConfig, exist_ok=True)


def _register_feature_extractor(auto) -> None:
    from .configuration_csc import CSCConfig
    from .feature_extraction_csc import CSCFeatureExtractor

    auto.AutoFeatureExtractor.register(CSCConfig, CSCFeatureExtractor, exist_ok=True)


def _import_models(auto) -> None:
    importlib.import_module(".modeling_csc", __name__)


def _register_models(modeling_csc) -> None:
    from transformers.models.auto import modeling_auto as auto

    from .configuration_csc import AUTO_MAP, CSCConfig

    for auto_class, path in AUTO_MAP.items():
        if auto_class.startswith("AutoModel"):
            model_class = getattr(modeling_csc, path.split(".")[1])
            getattr(auto, auto_class).register(CSCConfig, model_class, exist_ok=True)


def _import_pipelines(pipelines) -> None:
    importlib.import_module(".pipelines", __name__)


def _register_pipelines(pipelines) -> None:
    pipelines.register()


_AFTER_IMPORT_OF = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.feature_extraction_auto": _register_feature_extractor,
    # Our models import the module that they are registered in, so they are registered when both have been executed.
    "transformers.models.auto.modeling_auto": _import_models,
    f"{__name__}.modeling_csc": _register_models,
    # The same holds for our pipelines.
    "transformers.pipelines": _import_pipelines,
    f"{__name__}.pipelines": _register_pipelines,
}


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds those modules as usual, and acts once they have been executed."""

    def find_spec(self, fullname, path, target=None):
        act = _AFTER_IMPORT_OF.get(fullname)
        if act is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None:
            execute = spec.loader.exec_module

            def execute_and_act(module):
                execute(module)
                act(module)

            spec.loader.exec_module = execute_and_act
        return spec


sys.meta_path.insert(0, _AfterImport())
for _name in _AFTER_IMPORT_OF.keys() & sys.modules.keys():  # what acting imports goes through the finder
    _AFTER_IMPORT_OF[_name](sys.modules[_name])
