"""Single operations: losses and gradients are the trainer's, steps are torch's AdamW."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import art_core as art
from art_core.rl.config import TrainConfig
from art_core.rl.sequences import TokenSequence
from art_local.models.load import sharing_parameters
from art_local.primitives.datum import LOSSES
from art_local.training.policy import Policy
from art_local.training.trainer import Trainer

pytestmark = pytest.mark.torch
ADAM = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.0, "grad_clip_norm": 0.0}


@pytest.fixture(scope="module")
def primitives():
    backend = art.backend("local", device="cpu", dtype="float32", progress=False, lora_rank=8)
    return backend.primitives()


@pytest.fixture(scope="module")
def base(primitives, tmp_path_factory):
    from art_local.testing.tiny import save_tiny_model

    place = save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    return primitives.base("tiny/base", str(place))


def learned(primitives, base):
    """An adapter that changes the model: it took one step on a sequence."""
    adapter = primitives.adapter(base, 8, seed=3)
    ids = np.arange(30, 60)
    loss = primitives.loss("cross_entropy", {})
    data = [primitives.datum(ids[:-1], {"target_tokens": ids[1:]}, loss)]
    adapter.forward_backward(data, loss, backward=True)
    adapter.step(primitives.adam(learning_rate=1e-2, **ADAM))
    return adapter


def inputs_of(name, ids, seed):
    """Targets are the next tokens; log-probs and advantages are drawn."""
    draw = np.random.default_rng(seed)
    size = len(ids) - 1
    found = {"target_tokens": ids[1:]}
    if name == "cross_entropy":
        return {**found, "weights": draw.random(size, np.float32)}
    found["logprobs"] = (-5 + draw.standard_normal(size)).astype(np.float32)
    found["advantages"] = draw.standard_normal(size).astype(np.float32)
    if name == "gspo":
        found["sequence_ratio_mask"] = (np.arange(size) > 3).astype(np.float32)
    return found


def expected(name, logp, given):
    """The documented losses, one target at a time, in plain torch."""
    tensors = {key: torch.from_numpy(value) for key, value in given.items()}
    if name == "cross_entropy":
        return -logp * tensors["weights"]
    ratio, advantages = (logp - tensors["logprobs"]).exp(), tensors["advantages"]
    if name == "gspo":
        mask = tensors["sequence_ratio_mask"]
        mean = ((logp - tensors["logprobs"]) * mask).sum() / mask.sum()
        ratio, advantages = mean.exp().expand_as(logp), advantages * mask
    inside = ratio.clamp(0.8, 1.2)
    if name == "importance_sampling":
        return -ratio * advantages
    if name == "cispo":
        return -inside.detach() * logp * advantages
    if name == "dro":
        return -(logp * advantages - 0.5 * 0.05 * (logp - tensors["logprobs"]) ** 2)
    return -torch.minimum(ratio * advantages, inside * advantages)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_those_of_plain_torch_on_the_merged_weights(
    primitives, base, name
):
    adapter = learned(primitives, base)
    rows = [np.arange(40, 60), np.arange(100, 112)]
    given = [inputs_of(name, ids, seed) for seed, ids in enumerate(rows)]
    loss = primitives.loss(name, {})
    data = [primitives.datum(ids[:-1], each, loss) for ids, each in zip(rows, given, strict=True)]
    scored = adapter.forward_backward(data, loss, backward=True)

    weights = {key: value.clone().requires_grad_() for key, value in adapter.serving.items()}
    total = 0.0
    for ids, each, found in zip(rows, given, scored, strict=True):
        out = torch.func.functional_call(
            base.model, weights, (torch.from_numpy(ids[None, :-1]),), {"use_cache": False}
        )
        logp = out.logits[0].log_softmax(-1)
        logp = logp.gather(1, torch.from_numpy(ids[1:, None]))[:, 0]
        losses = expected(name, logp, each)
        assert found.logprobs == pytest.approx(logp.detach().numpy(), abs=1e-5)
        assert found.losses == pytest.approx(losses.detach().numpy(), rel=1e-5, abs=1e-5)
        total = total + losses.sum()
    total.backward()
    for key, parameter in adapter.policy.trained().items():
        module, _, factor = key.removeprefix("base_model.model.").rpartition(".lora_")
        slope = weights[f"{module}.weight"].grad
        other = dict(adapter.policy.trained())
        a, b = (other[f"base_model.model.{module}.lora_{f}.weight"].detach() for f in "AB")
        scale = 32 / 8
        right = scale * (b.T @ slope if factor.startswith("A") else slope @ a.T)
        assert parameter.grad.numpy() == pytest.approx(right.numpy(), rel=1e-4, abs=2e-5)


def test_losses_and_gradients_are_those_of_the_trainer(primitives, base):
    """The trainer divides the sum by the number of tokens; both start from the same weights."""
    ids = [tuple(range(40, 60)), tuple(range(100, 112))]
    sequences = [
        TokenSequence(
            token_ids=each,
            logprobs=(math.nan, *(-5.0 - 0.1 * n for n in range(len(each) - 1))),
            trainable=(False, *(True,) * (len(each) - 1)),
            advantage=0.5 - 2 * n,
            weight=1.0,
        )
        for n, each in enumerate(ids)
    ]
    tokens = sum(len(each) - 1 for each in ids)
    config = TrainConfig.of(
        loss_fn="ppo", epsilon=0.2, epsilon_high=0.2, normalization="token",
        packing=False, learning_rate=1e-9, max_grad_norm=1e9,
    )  # fmt: skip
    policy = Policy(sharing_parameters(base.model), dtype=torch.float32, lora=(8, 32), seed=3)
    metrics = Trainer(policy, progress=False).step(sequences, config)

    adapter = primitives.adapter(base, 8, seed=3)
    loss = primitives.loss("ppo", {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2})
    data = [
        primitives.datum(
            np.array(s.token_ids[:-1]),
            {
                "target_tokens": np.array(s.token_ids[1:]),
                "logprobs": np.array(s.logprobs[1:], np.float32),
                "advantages": np.full(len(s.token_ids) - 1, s.advantage, np.float32),
            },
            loss,
        )
        for s in sequences
    ]
    scored = adapter.forward_backward(data, loss, backward=True)
    total = sum(each.losses.sum(dtype="f8") for each in scored)
    norm = adapter.step(primitives.adam(learning_rate=0.0, **ADAM))
    assert total / tokens == pytest.approx(metrics["loss/train"], rel=1e-5)
    assert norm / tokens == pytest.approx(metrics["loss/grad_norm"], rel=1e-5)


def test_a_step_is_that_of_torch_adamw(primitives, base):
    adapter = learned(primitives, base)
    copies = {name: p.detach().clone() for name, p in adapter.policy.trained().items()}
    moments = {id(p): adapter._optimizer.state[p] for p in adapter.policy.trained().values()}
    ids = np.arange(70, 90)
    loss = primitives.loss("cross_entropy", {})
    data = [primitives.datum(ids[:-1], {"target_tokens": ids[1:]}, loss)]
    adapter.forward_backward(data, loss, backward=True)
    slopes = {name: p.grad.clone() for name, p in adapter.policy.trained().items()}
    norm = torch.stack([g.square().sum() for g in slopes.values()]).sum().sqrt()
    before = {
        name: {key: value.clone() for key, value in moments[id(p)].items()}
        for name, p in adapter.policy.trained().items()
    }
    given = {**ADAM, "weight_decay": 0.1, "grad_clip_norm": 0.5}
    assert adapter.step(primitives.adam(learning_rate=1e-3, **given)) == pytest.approx(norm)
    for name, parameter in adapter.policy.trained().items():
        slope, state = slopes[name] * (0.5 / (norm + 1e-6)), before[name]
        first = 0.9 * state["exp_avg"] + 0.1 * slope
        second = 0.95 * state["exp_avg_sq"] + 0.05 * slope**2
        moved = copies[name] * (1 - 1e-4) - 1e-3 * (first / (1 - 0.9**2)) / (
            (second / (1 - 0.95**2)).sqrt() + 1e-8
        )
        assert parameter.detach().numpy() == pytest.approx(moved.numpy(), abs=1e-6)


def test_gradients_of_several_calls_add_up(primitives, base):
    adapter = learned(primitives, base)
    loss = primitives.loss("cross_entropy", {})
    data = [
        primitives.datum(np.arange(n, n + 9), {"target_tokens": np.arange(n + 1, n + 10)}, loss)
        for n in (10, 50)
    ]
    adapter.forward_backward(data, loss, backward=True)
    whole = adapter.step(primitives.adam(learning_rate=0.0, **ADAM))
    for each in data:
        adapter.forward_backward([each], loss, backward=True)
    assert adapter.step(primitives.adam(learning_rate=0.0, **ADAM)) == pytest.approx(
        whole, rel=1e-5
    )


def test_several_targets_of_a_position_are_scored(primitives, base):
    adapter = learned(primitives, base)
    loss = primitives.loss("cross_entropy", {})
    ids, wide = np.arange(40, 50), np.stack([np.arange(41, 51), np.arange(10)], 1)
    weights = np.ones((10, 2), np.float32)
    (found,) = adapter.forward_backward(
        [primitives.datum(ids, {"target_tokens": wide, "weights": weights}, loss)],
        loss, backward=False,
    )  # fmt: skip
    for column in range(2):
        (alone,) = adapter.forward_backward(
            [primitives.datum(ids, {"target_tokens": wide[:, column]}, loss)], loss, backward=False
        )
        assert found.logprobs[:, column] == pytest.approx(alone.logprobs, abs=1e-6)


def test_a_gradient_that_is_not_finite_leaves_weights_and_moments(primitives, base):
    adapter = learned(primitives, base)
    before = {name: p.detach().clone() for name, p in adapter.policy.trained().items()}
    moments = adapter._state()
    loss = primitives.loss("cross_entropy", {})
    data = [primitives.datum(np.arange(5), {"target_tokens": np.arange(1, 6)}, loss)]
    adapter.forward_backward(data, loss, backward=True)
    next(iter(adapter.policy.trained().values())).grad.fill_(math.inf)
    with pytest.raises(art.BackendError, match="the gradient's norm is"):
        adapter.step(primitives.adam(learning_rate=1.0, **ADAM))
    for name, parameter in adapter.policy.trained().items():
        assert torch.equal(parameter, before[name])
    assert all(torch.equal(adapter._state()[key], value) for key, value in moments.items())


def test_a_saved_adapter_goes_on_as_if_it_had_not_been_saved(primitives, base, tmp_path):
    adapter = learned(primitives, base)
    adapter.save(tmp_path, optimizer=True)
    other = primitives.adapter(base, 8, seed=9)
    other.load(tmp_path, optimizer=True)
    loss = primitives.loss("cross_entropy", {})
    data = [primitives.datum(np.arange(9), {"target_tokens": np.arange(1, 10)}, loss)]
    for each in (adapter, other):
        each.forward_backward(data, loss, backward=True)
        each.step(primitives.adam(learning_rate=1e-2, **ADAM))
    for name, parameter in adapter.policy.trained().items():
        assert torch.equal(parameter, other.policy.trained()[name])
    merged = primitives.serving_of(base, tmp_path)
    assert not all(torch.equal(merged[key], value) for key, value in adapter.serving.items())


@pytest.mark.parametrize(
    ("inputs", "named", "words"),
    [
        ({"weights": np.ones(4, np.float32)}, "cross_entropy", "lacks 'target_tokens'"),
        ({"target_tokens": np.arange(4)}, "ppo", "lacks 'logprobs'"),
        ({"target_tokens": np.arange(3)}, "cross_entropy", r"shape \[3\] for 4 tokens"),
        (
            {"target_tokens": np.arange(4), "weights": np.ones(3, np.float32)},
            "cross_entropy",
            r"weights has shape \[3\]",
        ),
        (
            {"target_tokens": np.arange(4), "weights": np.full(4, np.nan, np.float32)},
            "cross_entropy",
            "not finite",
        ),
        ({"target_tokens": np.arange(4), "weight": np.ones(4)}, "cross_entropy", "weights"),
        ({"target_tokens": np.zeros((4, 2), int)}, "cispo", "lacks"),
    ],
)
def test_a_datum_that_does_not_fit_its_loss_is_refused(primitives, inputs, named, words):
    with pytest.raises(art.ConfigError, match=words):
        primitives.datum(np.arange(4), inputs, primitives.loss(named, {}))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("stable_reinforce", {}, "no loss .stable_reinforce.; known"),
        ("ppo", {"clip_lo": 0.1}, "clip_low_threshold"),
        ("dro", {"beta": "much"}, "number of at least 0"),
        ("dro", {"beta": math.nan}, "number of at least 0"),
    ],
)
def test_a_loss_that_does_not_exist_is_refused(primitives, name, options, words):
    with pytest.raises(art.ConfigError, match=words):
        primitives.loss(name, options)


def test_tokens_outside_of_the_vocabulary_are_refused(primitives):
    loss = primitives.loss("cross_entropy", {})
    datum = primitives.datum(np.array([1, 2]), {"target_tokens": np.array([2, 260])}, loss)
    with pytest.raises(art.ConfigError, match="token 260 is outside the vocabulary of 260"):
        datum.check_tokens(260, 512)
    with pytest.raises(art.ConfigError, match="2 tokens, the model's context 1"):
        datum.check_tokens(261, 1)


@pytest.mark.parametrize("options", [{"full_finetune": True}])
def test_whole_models_have_no_single_operations(options):
    with pytest.raises(art.ConfigError, match="need LoRA and the embedded engine"):
        art.backend("local", device="cpu", **options).primitives()
