"""One optimizer step: the same whatever the split, all or nothing when it fails."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import torch

from art_core.base.errors import BackendError
from art_core.rl.config import TrainConfig
from art_core.rl.losses import PRESETS
from art_local.training.optimizer import Optimizer
from art_local.training.trainer import Trainer

KEYS = {
    "loss/train", "loss/entropy", "loss/grad_norm", "loss/learning_rate",
    "loss/importance_ratio_mean", "loss/importance_ratio_p95", "loss/importance_ratio_p99",
    "loss/effective_sample_size",
    "loss/clipped_token_fraction", "loss/kl_k3", "loss/engine_logprob_diff",
    "data/step_num_gradient_steps",
}  # fmt: skip


def trained(policy):
    return {name: p.detach().clone() for name, p in policy.trained().items()}


def test_a_step_reports_its_metrics_under_canonical_keys(make_policy, sequences):
    metrics = Trainer(make_policy(), progress=False).step(sequences, TrainConfig())
    assert set(metrics) == KEYS
    assert metrics["loss/learning_rate"] == 1e-5


@pytest.mark.parametrize("loss_fn", list(PRESETS))
@pytest.mark.parametrize("lora", [(4, 8), None], ids=["LoRA", "whole"])
def test_the_loss_and_the_gradient_do_not_depend_on_the_split_into_micro_batches(
    make_policy, sequences, lora, loss_fn
):
    results = []
    for budget in (1, 100, 1024):
        config = TrainConfig(loss_fn=loss_fn, micro_batch_tokens=budget)
        results.append(Trainer(make_policy(lora=lora), progress=False).step(sequences, config))
    for other in results[1:]:
        for key in KEYS:
            assert other[key] == pytest.approx(results[0][key], rel=1e-4, abs=1e-6), key


def test_the_loss_is_the_weighted_mean_over_all_tokens_of_the_step(make_policy, sequences):
    policy = make_policy()
    wanted = weights = 0.0
    for s in sequences:
        ids = torch.tensor([s.token_ids])
        with torch.no_grad():
            logits = policy.model(input_ids=ids).logits[0, :-1]
        logprobs = logits.log_softmax(1).gather(1, ids[0, 1:, None])[:, 0]
        for position in range(1, len(s.token_ids)):
            if s.trainable[position]:
                logprob = float(logprobs[position - 1])
                ratio = min(max(0.0, 2.718281828 ** (logprob - s.logprobs[position])), 5.0)
                wanted += s.weight * -ratio * s.advantage * logprob
                weights += s.weight
    metrics = Trainer(policy, progress=False).step(sequences, TrainConfig())
    assert metrics["loss/train"] == pytest.approx(wanted / weights, rel=1e-3, abs=1e-5)


def test_a_step_raises_the_likelihood_of_better_attempts(make_policy, sequences):
    policy = make_policy(lora=None)
    trainer = Trainer(policy, progress=False)

    def gap():
        means = {1.0: 0.0, -1.0: 0.0}
        for s in sequences:
            ids = torch.tensor([s.token_ids])
            rows = torch.arange(len(s.token_ids) - 1)
            with torch.no_grad():
                found, _ = policy.logprobs(ids, rows, ids[0, 1:], chunk_size=64)
            means[s.advantage] += float(found[3:].mean())
        return means[1.0] - means[-1.0]

    before = gap()
    for _ in range(3):
        trainer.step(sequences, TrainConfig(learning_rate=1e-3))
    assert gap() > before + 0.5


def test_no_sequences_make_no_step_and_leave_the_weights(make_policy):
    policy = make_policy()
    before = trained(policy)
    metrics = Trainer(policy, progress=False).step([], TrainConfig())
    assert metrics == {"data/step_num_gradient_steps": 0.0}
    assert all(torch.equal(before[name], p) for name, p in policy.trained().items())


def test_a_gradient_that_is_not_finite_raises_and_leaves_the_weights(make_policy, sequences):
    policy = make_policy()
    before = trained(policy)
    trainer = Trainer(policy, progress=False)
    broken = [attrs.evolve(s, advantage=float("inf")) for s in sequences]
    with pytest.raises(BackendError, match="gradient's norm is"):
        trainer.step(broken, TrainConfig())
    assert all(torch.equal(before[name], p) for name, p in policy.trained().items())
    assert trainer.step(sequences, TrainConfig())["data/step_num_gradient_steps"] == 1.0


def test_a_step_does_not_touch_the_global_rng(make_policy, sequences):
    trainer = Trainer(make_policy(), progress=False)
    state = torch.get_rng_state()
    trainer.step(sequences, TrainConfig())
    assert torch.equal(state, torch.get_rng_state())


def test_bf16_and_fp32_agree_on_the_loss(make_policy, sequences):
    losses = [
        Trainer(make_policy(dtype=dtype), progress=False).step(sequences, TrainConfig())
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert losses[0]["loss/entropy"] == pytest.approx(losses[1]["loss/entropy"], rel=0.01)


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "rows"])
def test_all_weights_are_trained_in_bf16_as_in_fp32(make_policy, sequences, packing):
    losses = [
        Trainer(make_policy(lora=None, dtype=dtype), progress=False).step(
            sequences, TrainConfig(packing=packing)
        )
        for dtype in (torch.float32, torch.bfloat16)
    ]
    for key in ("loss/entropy", "loss/grad_norm"):
        assert losses[0][key] == pytest.approx(losses[1][key], rel=0.02)


def test_moments_of_another_rank_are_refused(make_policy, sequences):
    small = Trainer(make_policy(lora=(2, 4)), progress=False)
    small.step(sequences, TrainConfig())
    large = Trainer(make_policy(lora=(4, 8)), progress=False)
    with pytest.raises(BackendError, match="optimizer state in there is not that of this model"):
        large.optimizer.load(small.optimizer.state(), Path("there"))


def test_adamw_moves_a_weight_by_its_formula():
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = Optimizer({"w": weight})
    for gradient, expected in ((0.3, 0.9), (0.1, 0.9 - 0.1 * 0.194737 / 0.223157)):
        weight.grad = torch.tensor([gradient])
        assert optimizer.step(0.1, 1.0) == pytest.approx(gradient)
        # m = 0.9 m + 0.1 g and v = 0.99 v + 0.01 g², over 1 - 0.9ᵗ and 1 - 0.99ᵗ; no decay
        assert weight.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_steps_are_those_of_torch_to_the_last_bit(weight_decay):
    generator = torch.Generator().manual_seed(0)
    ours, theirs = ({"w": torch.nn.Parameter(torch.linspace(-1, 1, 50))} for _ in range(2))
    optimizer = Optimizer(ours)
    adamw = torch.optim.AdamW(theirs.values(), lr=0.1, betas=(0.9, 0.99))
    adamw.param_groups[0]["weight_decay"] = weight_decay
    for _ in range(3):
        gradient = torch.randn(50, generator=generator)
        ours["w"].grad, theirs["w"].grad = gradient.clone(), gradient
        shown = []
        optimizer.step(0.1, 1e9, lambda updates: shown.extend(updates), weight_decay)  # noqa: B023
        adamw.step()
        assert torch.equal(ours["w"], theirs["w"])
        assert torch.equal(shown[0].weight, theirs["w"])
        for kind, moment in shown[0].moments.items():
            assert torch.equal(moment, adamw.state[theirs["w"]][kind])
            assert torch.equal(moment, optimizer.moments()[f"{kind}.w"])


def test_a_step_that_is_not_accepted_moves_nothing():
    weights = {name: torch.nn.Parameter(torch.ones(3)) for name in ("a", "b")}
    optimizer = Optimizer(weights)

    def refuse(updates):
        next(updates)
        raise BackendError("not this one")

    for weight in weights.values():
        weight.grad = torch.ones(3)
    with pytest.raises(BackendError, match="not this one"):
        optimizer.step(0.1, 1.0, refuse)
    assert all(torch.equal(weight, torch.ones(3)) for weight in weights.values())
    assert all(weight.grad is None for weight in weights.values())
    assert optimizer.state() == {}


def test_what_an_optimizer_state_lacks_is_zero():
    made = {name: torch.nn.Parameter(torch.ones(2)) for name in ("a", "b")}
    optimizer = Optimizer(made)
    made["a"].grad = torch.tensor([0.5, -0.5])
    optimizer.step(0.1, 1e9)  # b had no gradient, as an expert that no token came to
    stored = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    assert set(stored) == {"exp_avg.a", "exp_avg_sq.a", "step.a"}
    del stored["exp_avg_sq.a"]
    again = Optimizer({name: torch.nn.Parameter(torch.ones(2)) for name in ("a", "b")})
    again.load(stored, Path("there"))
    assert again.state()["exp_avg.a"].tolist() == pytest.approx([0.05, -0.05])
    assert again.state()["exp_avg_sq.a"].tolist() == [0.0, 0.0]
    assert again.state()["step.a"] == 1.0
    assert "exp_avg.b" not in again.state()


def test_a_state_of_another_model_is_refused():
    optimizer = Optimizer({"w": torch.nn.Parameter(torch.ones(2))})
    with pytest.raises(BackendError, match=r"1 tensors differ, 'exp_avg\.other' first"):
        optimizer.load({"exp_avg.other": torch.ones(2), "exp_avg.w": torch.ones(2)}, Path("there"))


def test_a_gradient_is_clipped_to_its_largest_norm_and_its_own_is_told():
    weight = torch.nn.Parameter(torch.tensor([0.0, 0.0]))
    optimizer = Optimizer({"w": weight})
    weight.grad = torch.tensor([3.0, 4.0])
    assert optimizer.step(0.1, 0.5) == pytest.approx(5.0)
    # a tenth of (0.3, 0.4): what is left of the gradient
    assert optimizer.state()["exp_avg.w"].tolist() == pytest.approx([0.03, 0.04], rel=1e-4)
