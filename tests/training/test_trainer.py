# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Transformers' Trainer on our heads."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from csc_hf import CSCConfig, CSCForAudioFrameClassification, CSCForSequenceClassification, CSCForXVector


def rows(model_class, config, number=8):
    torch.manual_seed(1)
    for i in range(number):
        audio = torch.randn(2000)
        labels = torch.tensor(i % config.num_labels)
        if model_class is CSCForAudioFrameClassification:
            labels = torch.randint(0, 2, (config.num_segments(2000), config.num_labels)).float()
        yield {"input_values": audio, "attention_mask": torch.ones(2000, dtype=torch.long), "labels": labels}


@pytest.mark.parametrize("model_class", [CSCForXVector, CSCForSequenceClassification, CSCForAudioFrameClassification])
def test_accumulating_gradients_is_a_larger_batch(model_class, tmp_path):
    config = CSCConfig.tiny(hidden_dropout=0.0, attention_dropout=0.0, num_labels=3)
    torch.manual_seed(0)
    weights = model_class(config).state_dict()
    trained = []
    for batch_size, accumulation in ((8, 1), (2, 4)):
        model = model_class(config)
        model.load_state_dict(weights)
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            learning_rate=0.1,
            optim="sgd",
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        Trainer(model=model, args=arguments, train_dataset=list(rows(model_class, config))).train()
        trained.append(model.state_dict())
    moved = 0.0
    for name, tensor in trained[0].items():
        torch.testing.assert_close(trained[1][name], tensor, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
        moved = max(moved, (tensor - weights[name]).abs().max().item())
    assert moved > 1e-3
