# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Transformers' own common tests, run on every class of csc_hf. `upstream.py` says where they come from."""

import copy
import functools
import inspect
import re
import sys
import tempfile
import types
import unittest
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import transformers
from transformers import AudioClassificationPipeline
from transformers.testing_utils import torch_device
from upstream import FOLDER_VARIABLE, UpstreamTestsMissing, load_upstream_tests, upstream_folder

from csc_hf import (
    CSCConfig,
    CSCFeatureExtractor,
    CSCForAudioFrameClassification,
    CSCForPreTraining,
    CSCForSequenceClassification,
    CSCForSpeakerVerification,
    CSCForSpeechSeparation,
    CSCForXVector,
    CSCModel,
)

CLASSIFIERS = ("CSCForSequenceClassification", "CSCForXVector", "CSCForAudioFrameClassification")
upstream = load_upstream_tests(
    {
        "MODEL_MAPPING_NAMES": {"csc": "CSCModel"},
        # Where the tests of problem types and of replaced classifiers look.
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": {"csc": "CSCForSequenceClassification"},
        "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES": {"csc": CLASSIFIERS},
    }
)

# --- without upstream's tests, nothing passes ------------------------------------------------------------------------


def run(case: type) -> unittest.TestResult:
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    return result


def test_without_a_download_the_tests_fail_and_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr("upstream.CACHE", tmp_path)

    class Case(load_upstream_tests({}).ModelTesterMixin, unittest.TestCase):
        def test_something(self):
            """Would pass."""

    result = run(Case)
    assert result.testsRun == len(result.errors) == 2 and not result.skipped
    assert all(f"set {FOLDER_VARIABLE} to a folder" in message for _, message in result.errors)


@pytest.mark.parametrize(("version", "remedy"), [(None, "Unset the variable"), ("4.0.0", "Name the folder")])
def test_a_folder_without_the_installed_version_is_refused(monkeypatch, tmp_path, version, remedy):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    if version is not None:
        (tmp_path / "tests").mkdir()
        (tmp_path / "PKG-INFO").write_text(f"Metadata-Version: 2.4\nVersion: {version}\n")
    with pytest.raises(UpstreamTestsMissing, match=remedy):
        upstream_folder()


def test_a_folder_with_the_installed_version_is_taken(monkeypatch, tmp_path):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    (tmp_path / "tests").mkdir()
    (tmp_path / "PKG-INFO").write_text(f"Metadata-Version: 2.4\nVersion: {transformers.__version__}\n")
    assert upstream_folder() == tmp_path


# --- skips: each is explained here, or beside the code that skips, or it is a failure --------------------------------

# Upstream's tests that skip themselves, and what they test that we do not have.
SKIPPED_BY_UPSTREAM = {
    "test_attn_implementation_composite_models": "composite configuration",
    "test_bc_cache_name_forward": "key-value cache",
    "test_can_set_attention_dynamically_composite_model": "composite configuration",
    "test_causal_lm_loss_honors_shift_labels": "language model loss",
    "test_eager_matches_batched_and_grouped_inference": "mixture of experts",
    "test_enable_input_require_grads_with_gradient_checkpointing": "token embeddings",
    "test_encoder_decoder_loss_no_double_shift": "language model loss",
    "test_inputs_embeds": "token embeddings",
    "test_inputs_embeds_matches_input_ids": "token embeddings",
    "test_internal_model_config_and_subconfig_are_same": "composite configuration",
    "test_keep_in_fp32_modules": "weights kept in float32: ours may have any type, used in float32 where needed",
    "test_keep_in_fp32_modules_exist": "weights kept in float32, as above",
    "test_keep_in_fp32_modules_strict_also_hardcode_fp32": "weights kept in float32, as above",
    "test_model_rope_scaling_frequencies": "rotary positions",
    "test_model_rope_scaling_from_config": "rotary positions",
    "test_model_rope_with_partial_rotation": "rotary positions",
    "test_moe_models_record_router_logits": "mixture of experts",
    "test_output_router_logits_from_config": "mixture of experts",
    "test_resize_embeddings_untied": "token embeddings",
    "test_resize_embeddings_untied_no_reinit_on_post_init": "token embeddings",
    "test_resize_position_vector_embeddings": "learnt position embeddings: ours are computed",
    "test_resize_tokens_embeddings": "token embeddings",
    "test_sdpa_can_dispatch_composite_models": "composite configuration",
    "test_sliding_window_mask": "sliding window attention",
    "test_tied_head_has_a_tp_plan_entry": "tensor parallel plan",
    "test_torch_compile_for_training": "accelerator; one graph for the whole model, which torch refuses over nn.LSTM",
    "test_tp_plan_matches_params": "tensor parallel plan",
    "test_vision_axial_rope": "rotary positions",
}
# What upstream's decorators ask for, by the reason that they give.
NEEDED_BY_UPSTREAM = re.compile(
    r"test requires (multiple )?(accelerators?|Flash Attention( \d)?|the kernels library|MPS|deepspeed)"
)


def base_name(test_name: str) -> str:
    """Name of a test without what `parameterized` appends."""
    return test_name if test_name in SKIPPED_BY_UPSTREAM else re.sub(r"_\d+(_\w+)?$", "", test_name)


class ExplainedSkips:
    """A test that skips itself must be in `SKIPPED_BY_UPSTREAM`, and a test that is in there must skip itself."""

    def setUp(self):
        super().setUp()
        self.has_skipped = False

    def skipTest(self, reason):
        if base_name(self._testMethodName) not in SKIPPED_BY_UPSTREAM:
            self.fail(f"Skips for a reason that SKIPPED_BY_UPSTREAM does not explain: {reason}")
        self.has_skipped = True
        super().skipTest(reason)

    def tearDown(self):
        super().tearDown()
        if base_name(self._testMethodName) in SKIPPED_BY_UPSTREAM and not self.has_skipped:
            self.fail("No longer skipped by upstream: take it out of SKIPPED_BY_UPSTREAM.")


def test_an_unexplained_skip_fails():
    class Case(ExplainedSkips, unittest.TestCase):
        def test_something(self):
            self.skipTest("not listed")

        def test_inputs_embeds(self):
            """Listed, but does not skip."""

        def test_sliding_window_mask(self):
            self.skipTest("listed")

    result = run(Case)
    assert {test._testMethodName for test, _ in result.failures} == {"test_something", "test_inputs_embeds"}
    assert {test._testMethodName for test, _ in result.skipped} == {"test_sliding_window_mask"}


def test_whatever_a_test_needs_is_explained():
    cases = [case for case in globals().values() if inspect.isclass(case) and issubclass(case, ExplainedSkips)]
    unexplained = {
        f"{case.__name__}.{name}": method.__unittest_skip_why__
        for case in cases
        for name, method in inspect.getmembers(case, inspect.isfunction)
        if getattr(method, "__unittest_skip__", False)
        and method.__module__ != __name__  # else it is skipped in this file, with the reason beside it
        and base_name(name) not in SKIPPED_BY_UPSTREAM
        and not NEEDED_BY_UPSTREAM.fullmatch(method.__unittest_skip_why__)
    }
    assert not unexplained


# --- models ----------------------------------------------------------------------------------------------------------


class CSCModelTester:
    """A tiny configuration, inputs and labels, by the names that upstream's tests use."""

    is_training = True
    batch_size = 4

    def __init__(self, front_end: str, **options):
        # `initializer_range`: at the usual 0.02, attention hardly changes the output and could be wrong unseen.
        sizes = {"segment_length": 8, "num_hidden_layers": 2, "initializer_range": 0.2}
        if front_end == "stft":
            sizes |= {"conv_kernel": 64, "conv_stride": 16}
        self.config = CSCConfig.tiny(front_end=front_end, **sizes | options)
        self.num_samples = 400
        self.lengths = torch.tensor([300, 400, 200, 50])
        self.num_segments = self.config.num_segments(self.num_samples)
        self.seq_length = self.num_segments * self.config.segment_length
        self.hidden_size = self.config.hidden_size
        self.num_hidden_layers = self.config.num_hidden_layers
        self.num_attention_heads = self.config.low_dim * self.config.num_attention_heads  # rows are folded into heads
        generator = torch.Generator().manual_seed(0)
        self.sources = torch.randn(self.batch_size, self.config.num_sources, self.num_samples, generator=generator)
        self.class_labels = torch.tensor([0, 1, 1, 0])

    def get_config(self) -> CSCConfig:
        return copy.deepcopy(self.config)

    def prepare_config_and_inputs_for_common(self) -> tuple[CSCConfig, dict[str, torch.Tensor]]:
        # The sources continue in the padding, which the model must ignore.
        attention_mask = (torch.arange(self.num_samples) < self.lengths[:, None]).long()
        return self.get_config(), {
            "input_values": self.sources.sum(1).to(torch_device),
            "attention_mask": attention_mask.to(torch_device),
        }

    def enrolments(self) -> dict[str, torch.Tensor]:
        """Of three people, by up to two recordings of each."""
        lengths = torch.tensor([[300, 400], [400, 0], [100, 200]])
        generator = torch.Generator().manual_seed(1)
        enrolments = {
            "enrolment_values": torch.randn(*lengths.shape, self.num_samples, generator=generator),
            "enrolment_attention_mask": (torch.arange(self.num_samples) < lengths[..., None]).long(),
        }
        return {name: value.to(torch_device) for name, value in enrolments.items()}

    def labels(self, model_class: type) -> dict[str, torch.Tensor]:
        frames = (torch.arange(self.num_segments)[:, None] + torch.arange(self.config.num_labels)) % 2
        frames = frames.float().repeat(self.batch_size, 1, 1)
        frames[torch.arange(self.num_segments) >= self.config.num_segments(self.lengths)[:, None]] = -100
        speakers = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0]])  # each in two mixtures
        labels = {
            CSCModel: {},
            CSCForPreTraining: {"source_values": self.sources, "speaker_ids": speakers},
            CSCForSpeechSeparation: {"labels": self.sources},
            CSCForXVector: {"labels": self.class_labels},
            CSCForSequenceClassification: {"labels": self.class_labels},
            CSCForAudioFrameClassification: {"labels": frames},
            CSCForSpeakerVerification: {"labels": torch.eye(self.batch_size, 3)},
        }
        return {name: value.to(torch_device) for name, value in labels[model_class].items()}


class ModelTests(ExplainedSkips, upstream.ModelTesterMixin):
    front_end: str
    options: dict = {}
    all_model_classes = (
        CSCModel,
        CSCForPreTraining,
        CSCForXVector,
        CSCForSequenceClassification,
        CSCForAudioFrameClassification,
        CSCForSpeechSeparation,
        CSCForSpeakerVerification,
    )
    test_resize_embeddings = False  # token embeddings

    def setUp(self):
        super().setUp()
        self.model_tester = CSCModelTester(self.front_end, **self.options)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        # Upstream's own finds labels by the names of its classes, and drops the mask of x-vector models.
        inputs = copy.deepcopy(inputs_dict)
        if model_class is CSCForSpeakerVerification:
            inputs.update(self.model_tester.enrolments())
        if return_labels:
            inputs.update(self.model_tester.labels(model_class))
        return inputs

    def test_config(self):
        tester = upstream.ConfigTester(self, config_class=CSCConfig, has_text_modality=False, front_end=self.front_end)
        tester.run_common_tests()

    def test_attention_outputs(self):
        self.model_tester.seq_length = self.model_tester.num_segments  # hidden states are of frames, attentions not
        super().test_attention_outputs()

    def test_problem_types(self):
        self.model_tester.class_labels = torch.zeros(self.model_tester.batch_size, dtype=torch.long)  # of one class
        super().test_problem_types()

    def check_training_gradient_checkpointing(self, gradient_checkpointing_kwargs=None):
        # Every weight gets a gradient, except the speaker embedding of the one head whose loss does not use it.
        self.all_model_classes = tuple(c for c in type(self).all_model_classes if c is not CSCForSpeechSeparation)
        super().check_training_gradient_checkpointing(gradient_checkpointing_kwargs)
        self.all_model_classes, self.test_all_params_have_gradient = (CSCForSpeechSeparation,), False
        super().check_training_gradient_checkpointing(gradient_checkpointing_kwargs)

    def test_separation_leaves_only_the_speaker_embedding_alone(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = CSCForSpeechSeparation(config).to(torch_device)
        model(**inputs, **self.model_tester.labels(CSCForSpeechSeparation)).loss.backward()
        left_alone = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        layers = ["embedding", "batch_norm"] if config.embedding_batch_norm else ["embedding"]
        assert left_alone == {f"csc.speaker_branch.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}

    def test_batching_equivalence(self):
        # Hidden states of the scorer are of tests, then of enrolments, which upstream would compare with one another.
        # test_scorer.py compares its pairs with each pair alone.
        self.all_model_classes = tuple(c for c in type(self).all_model_classes if c is not CSCForSpeakerVerification)
        super().test_batching_equivalence()

    def test_bc_torch_dtype(self):
        self.all_model_classes = (CSCForXVector,)  # loads 14 times, and has a subtest for each weight
        super().test_bc_torch_dtype()

    @unittest.skip("token embeddings")
    def test_model_get_set_embeddings(self):
        """Fails where there are none."""

    @unittest.skip("vocabulary; test_can_load_ignoring_mismatched_shapes tests the same of our classifiers")
    def test_load_with_mismatched_shapes(self):
        """Fails where there is none."""


class ConvModelTest(ModelTests, unittest.TestCase):
    """Of the heads, only separation sees the front end: all others get embeddings."""

    front_end = "conv"
    all_model_classes = (CSCModel, CSCForPreTraining, CSCForSpeechSeparation)
    test_bc_torch_dtype = None  # loads 14 times; types of weights do not depend on the front end


class STFTModelTest(ModelTests, unittest.TestCase):
    front_end = "stft"


@pytest.mark.release
class BatchNormModelTest(ModelTests, unittest.TestCase):
    """A speaker branch of convolutions with batch norm, which has buffers."""

    front_end = "stft"
    options = {
        "speaker_block": "conv",
        "speaker_hidden_size": 24,
        "frame_activity": True,
        "embedding_batch_norm": True,
        "num_mel_bins": 8,
        "subtract_mean": True,
        "frame_stride": 2,
        "mask_hidden_size": 8,
        "segment_overlap": False,
    }


def declared_tests(case: type) -> list[str]:
    """Names of its tests. Where upstream makes a test for each set of parameters, None is left under its own name."""
    return [name for name in dir(case) if name.startswith("test_") and getattr(case, name) is not None]


def release_only(test: Callable) -> Callable:
    """A copy of an inherited test that only a release runs."""

    @functools.wraps(test)
    def copied(self):
        test(self)

    return pytest.mark.release(copied)


# On a CPU, attention differs by these only: with mask or without, computed by kernels or by products of matrices, and
# in which type. Without a mask no side is padded, and the types do not depend on the mask.
DIFFERING_ATTENTION = (
    "fp32_pad_right",
    "fp32_pad_right_sdpa_kernels",
    "fp32_pad_right_no_attn_mask",
    "fp32_pad_right_no_attn_mask_sdpa_kernels",
    "fp16_pad_right_sdpa_kernels",
    "bf16_pad_right_sdpa_kernels",
)

# Upstream gives each class its own copies of these.
for name in [name for name in declared_tests(ModelTests) if name.startswith("test_eager_matches_sdpa_inference")]:
    parameters = name.removeprefix("test_eager_matches_sdpa_inference_").split("_", 1)[1]
    if "pad_left" in name and "no_attn_mask" not in name:
        refused = unittest.skip("padding on the left is refused, which test_modeling.py tests")(lambda self: None)
        for case in (ConvModelTest, STFTModelTest, BatchNormModelTest):
            setattr(case, name, refused)
    elif parameters not in DIFFERING_ATTENTION:
        for case in (ConvModelTest, STFTModelTest, BatchNormModelTest):
            setattr(case, name, None)
    else:  # the attention does not depend on the front end
        setattr(STFTModelTest, name, release_only(getattr(STFTModelTest, name)))


# --- training --------------------------------------------------------------------------------------------------------


class TrainingTests(ExplainedSkips, upstream.TrainingTesterMixin):
    """Upstream's test that a model overfits a batch. It only knows text, so our batch passes for text. Separation
    losses, in dB, fall below zero, where upstream's relative threshold means nothing."""

    training_overfit_steps = 40
    training_overfit_learning_rate = 3e-3
    model_tester = None
    model_class: type

    def setUp(self):
        super().setUp()
        self.model_tester = CSCModelTester("stft", num_hidden_layers=1)
        self.model_tester.config.vocab_size = 0  # upstream reads it, to make text

    def _get_model_modality(self):
        return "text"

    def _get_trainable_model_class(self):
        return self.model_class

    def _create_text_training_batch(self, **sizes):
        inputs = self.model_tester.prepare_config_and_inputs_for_common()[1]
        batch = inputs | self.model_tester.labels(self.model_class)
        if self.model_class is CSCForSpeakerVerification:
            batch |= self.model_tester.enrolments()
        return {name: value.cpu() for name, value in batch.items()}  # the test leaves the model on the CPU


class XVectorTrainingTest(TrainingTests, unittest.TestCase):
    model_class = CSCForXVector


class SequenceClassificationTrainingTest(TrainingTests, unittest.TestCase):
    model_class = CSCForSequenceClassification


class AudioFrameClassificationTrainingTest(TrainingTests, unittest.TestCase):
    model_class = CSCForAudioFrameClassification


class SpeakerVerificationTrainingTest(TrainingTests, unittest.TestCase):
    model_class = CSCForSpeakerVerification


# --- feature extractor -----------------------------------------------------------------------------------------------


class CSCFeatureExtractionTester:
    """Options and recordings, by the names that upstream's tests use."""

    batch_size = 5
    feature_size = 1
    min_seq_length = 400
    seq_length_diff = 150
    max_seq_length = min_seq_length + (batch_size - 1) * seq_length_diff

    def prepare_feat_extract_dict(self):
        return {
            "feature_size": self.feature_size,
            "sampling_rate": 8000,
            "padding_value": 0.0,
            "return_attention_mask": True,
            "min_samples": 200,
        }

    def prepare_inputs_for_common(self, equal_length=False, numpify=False):
        step = 0 if equal_length else self.seq_length_diff
        rng = np.random.default_rng(0)
        recordings = [
            rng.uniform(-1, 1, size=self.min_seq_length + i * step).astype(np.float32) for i in range(self.batch_size)
        ]
        return recordings if numpify else [recording.tolist() for recording in recordings]


class FeatureExtractionTest(ExplainedSkips, upstream.SequenceFeatureExtractionTestMixin, unittest.TestCase):
    feature_extraction_class = CSCFeatureExtractor
    feat_extract_tester = CSCFeatureExtractionTester()


# --- pipeline --------------------------------------------------------------------------------------------------------


class AudioClassificationPipelineTests:
    """Stands in for upstream's tests of this pipeline, which are not in the source distribution."""

    def get_test_pipeline(self, model, tokenizer, feature_extractor, dtype):
        pipeline = AudioClassificationPipeline(
            model=model.to(getattr(torch, dtype)), feature_extractor=feature_extractor, tokenizer=tokenizer
        )
        noise = np.random.default_rng(0).uniform(-1, 1, size=5000)
        return pipeline, [noise, np.zeros(3000), {"array": noise[:10], "sampling_rate": 16000}]

    def run_pipeline_test(self, pipeline, examples):
        for example in examples:
            scores = {answer["label"]: answer["score"] for answer in pipeline(example)}
            assert scores.keys() == {"LABEL_0", "LABEL_1"}
            assert abs(sum(scores.values()) - 1) < 1e-2
            (best,) = pipeline(example, top_k=1)
            assert best["score"] == max(scores.values())


class PipelineTest(ExplainedSkips, upstream.PipelineTesterMixin, unittest.TestCase):
    pipeline_model_mapping = {"audio-classification": CSCForSequenceClassification}

    def setUp(self):
        super().setUp()
        # Upstream's tiny models, and the list of them, are on the Hub. This folder has the same layout.
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        model = CSCForSequenceClassification(CSCModelTester("stft").config)
        extractor = CSCFeatureExtractor(min_samples=model.config.segment_samples)
        for component in (model, extractor):
            component.save_pretrained(folder / "csc" / "CSCForSequenceClassification")
        classes = {"tokenizer_classes": [], "processor_classes": ["CSCFeatureExtractor"]}
        tests = {"audio-classification": {"test": f"{__name__}.{AudioClassificationPipelineTests.__name__}"}}
        self.enterContext(
            mock.patch.multiple(
                sys.modules[upstream.PipelineTesterMixin.__module__],
                TRANSFORMERS_TINY_MODEL_PATH=str(folder),
                tiny_model_summary={"CSCForSequenceClassification": classes},
                transformers_module=types.SimpleNamespace(CSCFeatureExtractor=CSCFeatureExtractor),
                pipeline_test_mapping=tests,
            )
        )


for name in dir(PipelineTest):
    if name.startswith("test_pipeline_") and not name.startswith("test_pipeline_audio_classification"):
        setattr(PipelineTest, name, None)  # the pipeline of another task, whose input is not audio alone
