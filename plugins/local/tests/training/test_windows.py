"""Several optimizer steps a batch, a reference policy, and what they compute beforehand."""

from __future__ import annotations

import attrs
import pytest
import torch

from art_core.base.errors import BackendError
from art_core.rl.config import TrainConfig
from art_core.rl.losses import LossSpec
from art_core.rl.sequences import TokenSequence
from art_local.training.batches import micro_batches
from art_local.training.trainer import Trainer
from art_local.training.windows import (
    Window,
    engine_logprobs,
    penalised,
    token_places,
    windows_of,
)

EACH_WAY = pytest.mark.parametrize("lora", [(4, 8), None], ids=["LoRA", "whole"])


def values(policy):
    return {name: p.detach().clone() for name, p in policy.trained().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def count_passes(policy):
    """Count passes with and without gradient from now on."""
    passes = {True: 0, False: 0}
    logprobs = policy.logprobs

    def counted(*args, **options):
        passes[torch.is_grad_enabled()] += 1
        return logprobs(*args, **options)

    policy.logprobs = counted
    return passes


def rows(*logprobs, advantages=None):
    return [
        TokenSequence(
            token_ids=tuple(range(len(lp) + 1)),
            trainable=(False,) + (True,) * len(lp),
            logprobs=(0.0, *lp),
            advantage=1.0 if advantages is None else advantages[i],
        )
        for i, lp in enumerate(logprobs)
    ]


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [(8, None, [8]), (8, 4, [4, 4]), (8, 9, [8]), (10, 4, [4, 4, 2]), (9, 4, [4, 5])],
)
def test_sequences_are_split_in_their_order_and_a_small_rest_joins(count, size, expected):
    made = rows(*([-1.0] for _ in range(count)))
    windows = windows_of(made, size)
    assert [len(w.sequences) for w in windows] == expected
    assert [s for w in windows for s in w.sequences] == made


def test_each_token_of_a_micro_batch_finds_its_place_among_all_tokens():
    made = rows([-1.0, -2.0], [-3.0], [-4.0, -5.0, -6.0])
    for budget in (1, 6, 100):
        for batch in micro_batches(made, budget):
            places = token_places(made, batch)
            assert engine_logprobs(made)[places].tolist() == batch.old_logprobs_R.tolist()


def test_own_log_probs_and_advantages_replace_those_of_the_sequences():
    made = rows([-1.0, -2.0], [-3.0])
    (batch,) = micro_batches(made, 100)
    assert Window(sequences=made).filled(batch) == (batch, None)
    window = Window(
        sequences=made,
        own_logprobs_N=torch.tensor([-0.1, -0.2, -0.3]),
        advantages_N=torch.tensor([1.0, 2.0, 3.0]),
    )
    filled, engine = window.filled(batch)
    assert filled.old_logprobs_R.tolist() == pytest.approx([-0.1, -0.2, -0.3])
    assert filled.advantages_R.tolist() == [1.0, 2.0, 3.0]
    assert engine.tolist() == [-1.0, -2.0, -3.0]


def test_the_penalty_moves_advantages_by_how_far_a_tokens_kl_is_from_the_mean():
    windows = windows_of(rows([-1.0, -2.0], [-3.0, float("-inf")], advantages=[1.0, -1.0]), 1)
    reference = [torch.tensor([-2.0, -2.0]), torch.tensor([-5.0, -1.0])]
    # kl 1, 0 and 2, and one that is not known; their mean is 1
    found, kl = penalised(windows, reference, 0.5)
    assert kl == pytest.approx(1.0)
    assert found[0].advantages_N.tolist() == pytest.approx([1.0, 1.5])
    assert found[1].advantages_N.tolist() == pytest.approx([-1.5, -1.0])
    assert penalised(windows_of(rows([float("nan")]), None), [torch.zeros(1)], 1.0)[1] == 0.0


def test_one_optimizer_step_computes_nothing_beforehand(make_policy, sequences):
    policy = make_policy()
    passes = count_passes(policy)
    Trainer(policy, progress=False).step(
        sequences, TrainConfig(micro_batch_tokens=1000, packing=False)
    )
    assert passes == {True: 1, False: 0}


@EACH_WAY
def test_several_optimizer_steps_compute_the_policys_own_log_probs_once(
    make_policy, sequences, lora
):
    policy = make_policy(lora=lora)
    trainer, passes = Trainer(policy, progress=False), count_passes(policy)
    taken, step = [], trainer.optimizer.step
    trainer.optimizer.step = lambda *args: taken.append(args) or step(*args)
    config = TrainConfig(
        grad_accumulation_sequences=4, micro_batch_tokens=1000, learning_rate=1e-3, packing=False
    )
    metrics = trainer.step(sequences, config)
    assert metrics["data/step_num_gradient_steps"] == len(taken) == 3
    assert passes == {True: 3, False: 3}
    # the engine's log-probs of -5.5 are not the policy's: k3 shows it, the ratio begins at 1
    assert metrics["loss/kl_k3"] > 1e-3
    assert metrics["loss/importance_ratio_mean"] == pytest.approx(1.0, abs=0.05)
    assert metrics["loss/importance_ratio_p99"] != 1.0


def test_the_first_of_several_steps_weighs_by_the_engines_mismatch_once(make_policy, sequences):
    # policy / old is 1 there, so the weight is min(old / engine, 2): that of one step up to the cap
    config = {"loss_fn": "importance_sampling", "learning_rate": 1e-3}
    norms = []
    for several in (True, False):
        trainer = Trainer(make_policy(), progress=False)
        step = trainer.optimizer.step
        found = []
        trainer.optimizer.step = lambda *a, f=found, s=step: f.append(s(*a)) or f[-1]
        size = {"grad_accumulation_sequences": 6} if several else {}
        trainer.step(sequences if several else sequences[:6], TrainConfig(**config, **size))
        norms.append(found[0])
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


@EACH_WAY
def test_a_step_that_fails_half_way_leaves_the_weights_and_the_optimizer(
    make_policy, sequences, lora
):
    policy = make_policy(lora=lora)
    trainer = Trainer(policy, progress=False)
    trainer.step(sequences, TrainConfig())
    before, state, serving = values(policy), trainer.optimizer.state(), dict(policy.serving)
    state = {name: tensor.clone() for name, tensor in state.items()}
    broken = [*sequences[:6], attrs.evolve(sequences[6], advantage=float("inf")), *sequences[7:]]
    with pytest.raises(BackendError, match="gradient's norm is"):
        trainer.step(broken, TrainConfig(grad_accumulation_sequences=6, learning_rate=1e-2))
    assert same(before, values(policy))
    assert same(state, trainer.optimizer.state())
    assert same(serving, policy.serving)


@EACH_WAY
def test_the_kl_to_the_policy_itself_is_that_of_the_engine_to_it(make_policy, sequences, lora):
    policy = make_policy(lora=lora)
    trainer, passes = Trainer(policy, progress=False), count_passes(policy)
    own = values(policy)
    config = TrainConfig(kl_penalty_coef=0.1, micro_batch_tokens=1000, packing=False)
    metrics = trainer.step(sequences, config, reference=lambda: own)
    assert passes == {True: 1, False: 1}
    # 5.5 nats a token under the engine, ln 260 = 5.56 under a policy that knows nothing
    assert metrics["loss/kl_div"] == pytest.approx(-5.5 + 5.56, abs=0.1)
    assert policy.logprobs is not None and not same(own, values(policy))


@EACH_WAY
def test_a_penalty_pulls_the_policy_back_to_its_reference(make_policy, sequences, lora):
    policy = make_policy(lora=lora)
    trainer, start = Trainer(policy, progress=False), values(policy)
    learning = {"learning_rate": 3e-3, "loss_fn": "importance_sampling"}
    few = sequences[-3:]
    fresh = [own_logprobs(policy, s) for s in few]

    def spread(now):
        return float(torch.cat([torch.tensor(n) - torch.tensor(f) for n, f in now]).std())

    for _ in range(3):
        trainer.step(few, TrainConfig(**learning))
    away = spread(zip([own_logprobs(policy, s) for s in few], fresh, strict=True))
    trainer = Trainer(policy, progress=False)  # with no momentum from before
    config = TrainConfig(**learning, kl_penalty_coef=1.0)
    for _ in range(4):
        # no rewards, old log-probs as if sampled anew: only the penalty is left to learn from
        batch = [attrs.evolve(s, advantage=0.0, logprobs=own_logprobs(policy, s)) for s in few]
        trainer.step(batch, config, reference=lambda: start)
    assert spread(zip([own_logprobs(policy, s) for s in few], fresh, strict=True)) < 0.8 * away


def own_logprobs(policy, s):
    ids = torch.tensor([s.token_ids])
    with torch.no_grad():
        found, _ = policy.logprobs(ids, torch.arange(ids.numel() - 1), ids[0, 1:], chunk_size=64)
    return (0.0, *found.tolist())


def test_without_its_adapter_the_policy_is_the_base_model(make_policy, sequences):
    policy = make_policy()
    trainer = Trainer(policy, progress=False)
    fresh = own_logprobs(policy, sequences[-1])
    trainer.step(sequences, TrainConfig(learning_rate=1e-2))
    moved, weights = own_logprobs(policy, sequences[-1]), values(policy)
    assert moved != pytest.approx(fresh, abs=1e-3)
    batch = [attrs.evolve(sequences[-1], logprobs=moved)]
    config = TrainConfig(kl_penalty_coef=0.1, learning_rate=1e-12)
    kl = trainer.step(batch, config, reference=lambda: None)["loss/kl_div"]
    trained = zip(moved, fresh, sequences[-1].trainable, strict=True)
    kls = [m - f for m, f, t in trained if t]
    assert kl == pytest.approx(sum(kls) / len(kls), abs=1e-4)
    assert all(p.requires_grad for p in policy.trained().values())
    assert own_logprobs(policy, sequences[-1]) == pytest.approx(moved, abs=1e-4)
    assert torch.allclose(torch.cat([p.flatten() for p in weights.values()]), torch.cat(
        [p.detach().flatten() for p in policy.trained().values()]), atol=1e-6)  # fmt: skip


def test_the_weights_come_back_when_a_reference_pass_fails(make_policy, sequences):
    policy = make_policy()
    other = values(make_policy(seed=7))
    before, logprobs = values(policy), policy.logprobs

    def fail(*_, **__):
        raise ValueError("no")

    policy.logprobs = fail
    with pytest.raises(ValueError, match="no"):
        Trainer(policy, progress=False).step(
            sequences, TrainConfig(kl_penalty_coef=0.1, packing=False), reference=lambda: other
        )
    policy.logprobs = logprobs
    assert same(before, values(policy))


def test_a_loss_of_your_own_moves_the_weights(make_policy, sequences):
    seen = []

    def reinforce(tokens):
        seen.append(len(tokens.logprobs_R))
        return -tokens.advantages_R * tokens.logprobs_R

    policy = make_policy()
    before = values(policy)
    config = TrainConfig(loss_fn=LossSpec(name="reinforce", create=lambda: reinforce))
    metrics = Trainer(policy, progress=False).step(sequences, config)
    assert metrics["data/step_num_gradient_steps"] == 1.0
    assert sum(seen) == sum(s.num_trainable for s in sequences)
    assert not same(before, values(policy))


def test_several_steps_draw_no_random_number(make_policy, sequences):
    policy = make_policy()
    trainer = Trainer(policy, progress=False)
    state, own = torch.get_rng_state(), policy.generator.get_state()
    weights = values(policy)
    config = TrainConfig(grad_accumulation_sequences=5, kl_penalty_coef=0.1)
    trainer.step(sequences, config, reference=lambda: weights)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(own, policy.generator.get_state())
