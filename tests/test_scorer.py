# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""The scorer that sees both sides of a trial: the model, the pipeline and the protocol of evaluation."""

import numpy as np
import pytest
import torch
from test_modeling import FRONT_ENDS, moments, tiny
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import pipeline
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from csc_hf import CSCForPreTraining, CSCForSpeakerVerification, CSCModel, modeling_csc
from csc_hf.evaluation.embedders import CSCEmbedder, load_embedder
from csc_hf.evaluation.scoring import score_trials
from csc_hf.evaluation.trials import build_trials
from csc_hf.feature_extraction_csc import high_pass
from csc_hf.long_audio import embed
from csc_hf.modeling_csc import verification_loss

LENGTHS, ENROLMENT_LENGTHS = [3000, 1701, 10], [[3500, 900], [2600, 3300], [1, 1200], [4000, 2000]]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def scorer(front_end="stft", **options) -> CSCForSpeakerVerification:
    """A model whose head does something; that of a new one only adds zero."""
    model = moments(CSCForSpeakerVerification(tiny(front_end, initializer_range=0.3, **options))).eval()
    nn.init.normal_(model.head_logit.weight, std=0.3)
    return model


def sides(lengths=LENGTHS, enrolment_lengths=ENROLMENT_LENGTHS) -> dict[str, torch.Tensor]:
    """Tests and enrolments with noise for padding, which only the masks hide."""
    enrolled = torch.tensor(enrolment_lengths)
    return {
        "input_values": torch.randn(len(lengths), 3000),
        "attention_mask": (torch.arange(3000) < torch.tensor(lengths)[:, None]).long(),
        "enrolment_values": torch.randn(*enrolled.shape, 4000),
        "enrolment_attention_mask": (torch.arange(4000) < enrolled[..., None]).long(),
    }


def logits_of(model: CSCForSpeakerVerification, **inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


# --- the model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("front_end", [*FRONT_ENDS, "tdnn"])
def test_all_pairs_are_what_each_pair_is_without_padding(front_end):
    model, batch = scorer(front_end), sides()
    together = logits_of(model, **batch)
    assert together.shape == (3, 4) and together.std() > 0.05
    for row, length in enumerate(LENGTHS):
        for column, lengths in enumerate(ENROLMENT_LENGTHS):
            longest = max(lengths)
            alone = logits_of(
                model,
                input_values=batch["input_values"][row : row + 1, :length],
                enrolment_values=batch["enrolment_values"][column : column + 1, :, :longest],
                enrolment_attention_mask=batch["enrolment_attention_mask"][column : column + 1, :, :longest],
            )
            torch.testing.assert_close(together[row, column], alone[0, 0], atol=5e-5, rtol=0)


def test_the_order_of_the_recordings_of_a_person_does_not_matter():
    model, batch = scorer(), sides()
    turned = {name: tensor.flip(1) if name.startswith("enrol") else tensor for name, tensor in batch.items()}
    torch.testing.assert_close(logits_of(model, **turned), logits_of(model, **batch))


def test_a_person_may_have_fewer_recordings():
    model, batch = scorer(), sides()
    batch["enrolment_attention_mask"][1, 0] = 0
    fewer = logits_of(model, **batch)
    only = {name: tensor[1:2, 1:] if name.startswith("enrol") else tensor for name, tensor in batch.items()}
    torch.testing.assert_close(fewer[:, 1:2], logits_of(model, **only), atol=5e-5, rtol=0)
    both = logits_of(model, **sides() | {"input_values": batch["input_values"]})
    assert (both[:, 1] - fewer[:, 1]).abs().max() > 1e-3  # the other recording did count


def test_bad_enrolments_are_named():
    model = scorer()
    with pytest.raises(ValueError, match=r"enrolment_values.*\(identities, recordings, samples\), got None"):
        model(sides()["input_values"])
    with pytest.raises(ValueError, match=r"enrolment_values.*got \(4, 4000\)"):
        model(**sides() | {"enrolment_values": torch.randn(4, 4000)})
    with pytest.raises(ValueError, match="`enrolment_attention_mask` must have shape"):
        model(**sides() | {"enrolment_attention_mask": torch.ones(4, 2, 3999)})
    with pytest.raises(ValueError, match="`labels` must have shape"):
        model(**sides(), labels=torch.ones(4, 3))
    batch = sides()
    batch["enrolment_values"][1, 0, 2599] = float("nan")
    with pytest.raises(ValueError, match=r"enrolment_values\[1, 0\].* NaN or infinite .* at 2599\. Repair"):
        model(**batch)
    batch["enrolment_values"][1, 0, 2599] = 0
    batch["enrolment_attention_mask"][2] = 0
    with pytest.raises(ValueError, match=r"enrolment_attention_mask\[2\].* 0 everywhere: leave out a person"):
        model(**batch)
    batch["enrolment_attention_mask"][2, 1, 5:9] = 1
    with pytest.raises(ValueError, match=r"enrolment_attention_mask\[2, 1\].*pad on the right"):
        model(**batch)


@pytest.mark.parametrize("use_cross_attention", [True, False])
def test_a_new_head_is_the_mean_of_two_cosines(use_cross_attention, tmp_path):
    """Of the enrolment with the best active slot, and with what the attention of pre-training reads of the test."""
    config = tiny("stft", initializer_range=0.3, use_cross_attention=use_cross_attention)
    pretrained = CSCForPreTraining(config).eval()
    pretrained.save_pretrained(tmp_path)
    model, info = CSCForSpeakerVerification.from_pretrained(tmp_path, output_loading_info=True)
    own = {"log_cosine_scale", "cosine_threshold"}
    own |= {f"head_{layer}.{kind}" for layer in ("hidden", "logit") for kind in ("weight", "bias")}
    assert info["missing_keys"] == own and not info["unexpected_keys"]
    weights = pretrained.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items() if name not in own)

    tests, enrolments = torch.randn(3, 3000), torch.randn(4, 2, 4000)
    actual = logits_of(model, input_values=tests, enrolment_values=enrolments)
    with torch.no_grad():
        found = pretrained.csc(enrolments.flatten(0, 1))
        main = found.source_embeddings[torch.arange(8), found.source_activity.argmax(-1)]
        people = F.normalize(main.unflatten(0, (4, 2)).mean(1), dim=-1)
        for row, test in enumerate(tests):
            heard = pretrained.csc(test[None])
            active = (heard.source_activity[0] > 0) | (heard.source_activity[0] == heard.source_activity.max())
            of_slots = (people @ heard.source_embeddings[0, active].T).amax(-1)
            memory = heard.source_hidden_states.flatten(1, 2).expand(4, -1, -1)
            of_read = (people * pretrained.aggregate(people, memory)).sum(-1)
            torch.testing.assert_close(actual[row], 10 * ((of_slots + of_read) / 2 - 0.5), atol=1e-4, rtol=0)


@pytest.mark.parametrize("num_elements", [1, 100, 2000])
def test_the_pairs_by_parts_are_the_pairs(num_elements, monkeypatch):
    model, batch, results = scorer(hidden_dropout=0.0, attention_dropout=0.0), sides(), []
    for bound in (2**23, num_elements):
        monkeypatch.setattr(modeling_csc, "CONTRAST_ELEMENTS", bound)
        output = model(**batch, labels=torch.eye(4)[:3])
        results.append([output.logits, *torch.autograd.grad(output.loss, list(model.parameters()))])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


class Largest(TorchDispatchMode):
    """Keeps the elements of the largest tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize(("num_people", "num_tests", "num_segments"), [(300, 5, 10), (20, 60, 400), (2000, 2, 2000)])
def test_many_pairs_are_bounded_in_memory(num_people, num_tests, num_segments, monkeypatch):
    bound = 2**17
    monkeypatch.setattr(modeling_csc, "CONTRAST_ELEMENTS", bound)
    model, size = scorer(), 2 * num_segments
    people = F.normalize(torch.randn(num_people, 32), dim=-1)
    tests = F.normalize(torch.randn(num_tests, 2, 32), dim=-1), torch.randn(num_tests, 2)
    memory = torch.randn(num_tests, size, 16)
    with torch.no_grad(), Largest() as largest:
        logits = model.score(people, *tests, memory)
    assert logits.isfinite().all() and logits.shape == (num_tests, num_people)
    assert largest.elements <= max(bound, memory.numel())
    assert largest.elements < num_people * num_tests * size


def test_everything_learns():
    model = scorer("tdnn").train()
    model(**sides(), labels=torch.eye(4)[:3]).loss.backward()
    assert {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()} == set()
    new = CSCForSpeakerVerification(tiny("stft"))
    new(**sides(), labels=torch.eye(4)[:3]).loss.backward()
    for part in (new.csc.layers, new.csc.front_end, new.csc.speaker_branch.embedding, new.aggregator, new.head_logit):
        assert all(parameter.grad.any() for parameter in part.parameters()), "a new head teaches the encoder at once"


def test_the_loss_is_balanced_and_ignores_what_is_unknown():
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]])
    labels = torch.tensor([[1, 0, -100], [0, 0, -100]])
    same, other = F.softplus(-logits[0, 0]), F.softplus(logits[[0, 1, 1], [1, 0, 1]]).mean()
    torch.testing.assert_close(verification_loss(logits, labels), (same + other) / 2)
    assert verification_loss(logits, torch.full((2, 3), -100)) == 0
    model, batch = scorer(), sides()
    batch["labels"] = torch.tensor([[1, 0, 0, 0], [0, 1, -100, 0], [0, 0, 1, 0]])
    output = model(**batch)
    torch.testing.assert_close(output.loss, verification_loss(output.logits, batch["labels"]))
    output.logits.retain_grad()
    output.loss.backward()
    assert output.logits.grad[1, 2] == 0 and output.logits.grad.count_nonzero() == 11


@pytest.mark.parametrize("front_end", [*FRONT_ENDS, "tdnn"])
def test_silence_has_finite_logits_and_gradients(front_end):
    model = scorer(front_end).train()
    tests, enrolments = torch.randn(2, 400), torch.randn(2, 1, 400)
    tests[0], enrolments[1] = 0, 0
    output = model(tests, enrolment_values=enrolments, labels=torch.eye(2))
    output.loss.backward()
    assert output.logits.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_half_precision_is_close_to_single():
    model, batch = scorer(), sides()
    with torch.autocast("cpu", torch.bfloat16):
        actual = logits_of(model, **batch)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, logits_of(model, **batch), atol=0.5, rtol=0)


# --- where it is used ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved scorer."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("scorer")
    scorer(speaker_embedding_size=16).save_pretrained(folder)
    return folder


def test_remote_code_gives_the_same_logits(folder):
    model = CSCForSpeakerVerification.from_pretrained(folder).eval()
    name = model.config.auto_map["CSCForSpeakerVerification"]
    remote = get_class_from_dynamic_module(name, folder)
    assert remote is not CSCForSpeakerVerification
    batch = sides()
    torch.testing.assert_close(logits_of(remote.from_pretrained(folder).eval(), **batch), logits_of(model, **batch))


def recordings(count: int, num_samples: int = 6000) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [0.1 * rng.standard_normal(num_samples + 500 * n).astype(np.float32) for n in range(count)]


def test_the_pipeline_takes_a_scorer_for_what_it_is(folder, caplog):
    first, second, test, other = recordings(4)
    verify = pipeline("speaker-verification", model=str(folder))
    assert type(verify.model) is CSCForSpeakerVerification and verify.enrolment == "scorer"
    assert "the enrolment 'scorer': SCORES ARE BARE LOGITS" in caplog.text and "newly initialised" not in caplog.text
    heard = [torch.from_numpy(high_pass(recording, 16000)[0]) for recording in (first, second, test)]
    enrolled = torch.zeros(1, 2, len(second))
    enrolled[0, 0, : len(first)], enrolled[0, 1] = heard[:2]
    mask = (torch.arange(len(second)) < torch.tensor([[[len(first)], [len(second)]]])).long()
    inputs = {"enrolment_values": enrolled, "enrolment_attention_mask": mask}
    expected = logits_of(verify.model, input_values=heard[2][None], **inputs).item()
    assert verify([first, second], test)["score"] == pytest.approx(expected, abs=1e-4)
    verify.enrol("anna", [first, second])
    assert [r[0]["score"] for r in verify([other, test], batch_size=2)][1] == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ValueError, match="hears the test recording"):
        verify.compare(verify.enrolled["anna"].embedding)
    # The cosine beside it, and other models without a scorer.
    mean = pipeline("speaker-verification", model=verify.model, enrolment="mean")
    audio = embed(verify.model.csc, test)
    slots = audio.embeddings[(audio.activity > 0) | (audio.activity == audio.activity.max())]
    best = (slots @ verify.enrolled["anna"].embedding).max()
    assert mean([first, second], test)["score"] == pytest.approx(float(best), abs=1e-5)
    with pytest.raises(ValueError, match="CSCModel lacks: use a checkpoint of CSCForSpeakerVerification"):
        pipeline("speaker-verification", model=CSCModel(tiny()), enrolment="scorer")


def test_the_scorer_hears_all_of_a_long_test(folder):
    enrolment, test = recordings(1)[0], recordings(1, 200_000)[0]  # 12.5 s: two chunks
    verify = pipeline("speaker-verification", model=str(folder), threshold=0.0)
    whole = verify(enrolment, test)["score"]
    audio = embed(verify.model.csc, test, with_segments=True)
    voice = embed(verify.model.csc, enrolment)
    query = torch.from_numpy(voice.embeddings[voice.activity.argmax()])[None]
    of_test = (torch.from_numpy(array)[None] for array in (audio.embeddings, audio.activity))
    expected = verify.model.score(query, *of_test, audio.segments[None]).item()
    assert whole == pytest.approx(expected, abs=1e-5)


class Clip:
    def __init__(self, speaker: int, number: int):
        rng = np.random.default_rng([speaker, number])
        self.id, self.speaker, self.source = f"{speaker}-{number}", f"speaker {speaker}", "noise"
        self.waveform = (0.1 * rng.standard_normal(8000)).astype(np.float32)


@pytest.mark.parametrize(("num_recordings", "name"), [(1, "mix0"), (2, "mix0"), (1, "mix0_mix0")])
def test_the_protocol_scores_trials_as_the_model_does(num_recordings, name, folder):
    clips = [Clip(speaker, number) for speaker in range(4) for number in range(3)]
    trials = build_trials(clips, seconds=0.5, conditions=[name], enrolment_recordings=num_recordings)
    embedder = load_embedder(str(folder))
    assert isinstance(embedder, CSCEmbedder) and type(embedder.model) is CSCForSpeakerVerification
    scores = score_trials(embedder, trials, enrolment="scorer", progress=False)
    assert scores.enrolment == "scorer" and scores.slot_known[name] is None
    condition = trials.conditions[name]

    def hear(kind: str, numbers) -> torch.Tensor:
        return torch.stack([torch.from_numpy(trials.signal(kind, number)[0]) for number in numbers])

    model = embedder.model.eval()
    for p in range(0, len(scores.scores[name]), 5):
        tests = hear(condition.kinds[1], [condition.test[p]])
        enrolments = hear(condition.kinds[0], trials.enrolments[condition.enrolment[p]])
        if name == "mix0":
            expected = logits_of(model, input_values=tests, enrolment_values=enrolments[None])[0, 0]
        else:  # the best of the active slots of the enrolment, which is a mixture
            with torch.no_grad():
                found, test = model.csc(enrolments), model.csc(tests)
                active = (found.source_activity > 0) | (found.source_activity == found.source_activity.max())
                of_test = test.source_embeddings, test.source_activity, test.source_hidden_states.flatten(1, 2)
                expected = model.score(found.source_embeddings[active], *of_test).max()
        assert scores.scores[name][p] == pytest.approx(expected.item(), abs=1e-4)


def test_a_scorer_that_cannot_be_is_named(folder):
    clips = [Clip(speaker, number) for speaker in range(3) for number in range(2)]
    trials = build_trials(clips, seconds=0.5, conditions=["clean"])
    with pytest.raises(ValueError, match="a scorer, which CSCModel lacks"):
        score_trials(CSCEmbedder(CSCModel(tiny())), trials, enrolment="scorer", progress=False)
    with pytest.raises(ValueError, match="needs a CSCForSpeakerVerification"):
        score_trials(lambda waveforms: np.ones((len(waveforms), 2)), trials, enrolment="scorer", progress=False)
    others = [Clip(speaker, number) for speaker in (8, 9) for number in range(2)]
    cohort = build_trials(others, seconds=0.5, conditions=["clean"])
    with pytest.raises(ValueError, match="leave the cohort out"):
        score_trials(load_embedder(str(folder)), trials, enrolment="scorer", cohort=cohort, progress=False)
