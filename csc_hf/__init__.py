# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Contrastive Separative Coding for Hugging Face Transformers: on import, Auto classes and pipelines know it."""

from .broken_packages import explain

try:
    import transformers

    from . import modeling_csc, pipelines
    from .configuration_csc import MODEL_CLASSES, PRESETS, CSCConfig
    from .feature_extraction_csc import CSCFeatureExtractor
    from .modeling_csc import *  # noqa: F403 (exactly the classes of MODEL_CLASSES and their outputs)
except Exception as error:
    if (_reason := explain(error)) is None:
        raise
    raise ImportError(_reason) from None
from .version import __version__ as __version__

__all__ = ["PRESETS", "CSCConfig", "CSCFeatureExtractor"] + modeling_csc.__all__

transformers.AutoConfig.register(CSCConfig.model_type, CSCConfig, exist_ok=True)
transformers.AutoFeatureExtractor.register(CSCConfig, CSCFeatureExtractor, exist_ok=True)
for _name, _auto_class in MODEL_CLASSES.items():
    if _auto_class is not None:
        getattr(transformers, _auto_class).register(CSCConfig, getattr(modeling_csc, _name), exist_ok=True)
pipelines.register()
