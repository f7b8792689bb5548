"""The critic: generalized advantages, the clipped value loss, and a value head that learns."""

from __future__ import annotations

import attrs
import pytest
import torch

from art_core.base.errors import BackendError
from art_core.rl.config import TrainConfig
from art_core.rl.distill import distilled
from art_core.rl.sequences import TokenSequence
from art_local.training.critic import FILE, Critic, explained_variance, value_loss
from art_local.training.trainer import Trainer
from art_local.training.windows import ValueTargets, Window, penalised, windows_of

PPO = {"loss_fn": "ppo", "advantage_baseline": "value", "learning_rate": 1e-3}


def row(rewards, continues=False):
    """A prompt of one token, and an answer of as many tokens as there are rewards."""
    return TokenSequence(
        token_ids=tuple(range(3, 4 + len(rewards))),
        trainable=(False, *[True] * len(rewards)),
        logprobs=(0.0, *[-1.0] * len(rewards)),
        weight=1 / len(rewards),
        token_rewards=(0.0, *rewards),
        continues=continues,
    )


def oracle(rewards, values, gamma, lam):
    """GAE as its definition has it: the sum of all later temporal differences."""
    values = [*values, 0.0]
    deltas = [r + gamma * values[t + 1] - values[t] for t, r in enumerate(rewards)]
    return [
        sum((gamma * lam) ** (later - t) * deltas[later] for later in range(t, len(deltas)))
        for t in range(len(deltas))
    ]


def given(critic, sequences, size=None, **options):
    """Return the windows with advantages, for hidden states that are drawn once per seed."""
    torch.manual_seed(1)
    windows = windows_of(sequences, size)
    hidden = [torch.randn(sum(s.num_trainable for s in w.sequences), 4) for w in windows]
    config = TrainConfig(**PPO, **options)
    return *critic.targets(windows, hidden, config), hidden


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.95), (0.9, 0.5), (0.99, 0.0)])
def test_advantages_are_those_of_the_definition(gamma, lam):
    critic = Critic(4)
    with torch.no_grad():
        critic.weight_H.copy_(torch.tensor([0.5, -1.0, 2.0, 0.25]))
        critic.bias.fill_(0.1)
    sequences = [row([0.0, 0.0, 1.0]), row([0.5, -1.0]), row([0.0, 2.0, 0.0], continues=True)]
    windows, _, hidden = given(critic, sequences, 1, gae_gamma=gamma, gae_lambda=lam)
    states = torch.cat(hidden)
    values = [float(critic.values(state[None]).detach()) for state in states]
    lengths = states.norm(dim=1, keepdim=True)
    assert values == pytest.approx(((states / lengths) @ critic.weight_H + 0.1).tolist())
    wanted = oracle([0.0, 0.0, 1.0], values[:3], gamma, lam)
    wanted += oracle([0.5, -1.0, 0.0, 2.0, 0.0], values[3:], gamma, lam)
    found = torch.cat([window.advantages_N for window in windows])
    assert found.tolist() == pytest.approx(wanted, abs=1e-5)
    returns = torch.cat([window.values.returns_N for window in windows])
    assert (returns - found).tolist() == pytest.approx(values, abs=1e-5)


def test_a_critic_that_knows_nothing_gives_the_rewards_to_come():
    windows, metrics, _ = given(Critic(4), [row([0.0, 1.0]), row([0.0, 0.0])], gae_lambda=1.0)
    assert windows[0].advantages_N.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert metrics == {"loss/value_explained_variance": 0.0}


def test_the_balance_weakens_advantages_and_leaves_returns():
    (window,), _, _ = given(Critic(4), [row([1.0]), row([-1.0])], advantage_balance=0.75)
    assert window.advantages_N.tolist() == [1.0, -0.25]
    assert window.values.returns_N.tolist() == [1.0, -1.0]


def test_a_kl_penalty_is_added_to_the_advantages_of_the_critic():
    (window,), _, _ = given(Critic(4), [row([0.0, 1.0])], gae_lambda=1.0)
    (moved,), kl = penalised([window], [torch.tensor([-2.0, -1.0])], 0.5)
    assert kl == pytest.approx(0.5)
    assert moved.advantages_N.tolist() == pytest.approx([0.75, 1.25])
    assert moved.values is window.values


def test_a_teacher_is_added_to_the_advantages_of_the_critic_and_not_to_its_returns():
    """By hand: with gamma = lambda = 0.5 and V = (1, 1), the rewards (0, 4) have the differences
    0 + 0.5 - 1 = -0.5 and 4 - 1 = 3, so A = (-0.5 + 0.25 * 3, 3) = (0.25, 3). The teacher's
    log-probs are -0.5 and -3 where the policy's are -1: with 0.5 they add 0.25 and -1.
    """
    critic = Critic(4)
    with torch.no_grad():
        critic.bias.fill_(1.0)
    scored = attrs.evolve(row([0.0, 4.0]), teacher_logprobs=(0.0, -0.5, -3.0))
    options = {"gae_gamma": 0.5, "gae_lambda": 0.5}
    (window,), _, _ = given(critic, [distilled(scored, 0.5)], **options)
    assert window.advantages_N.tolist() == [0.5, 2.0]
    assert window.values.returns_N.tolist() == [1.25, 4.0]


def test_the_value_loss_is_clipped_like_that_of_ppo():
    """By hand: V moves from 0 to 1 for a return of 2, where 0.2 is allowed; then from 0 to 0.1."""
    values, old, returns = torch.tensor([1.0, 0.1]), torch.zeros(2), torch.tensor([2.0, 1.0])
    loss = value_loss(values, old, returns, 0.2)
    assert float(loss) == pytest.approx(0.5 * (1.8**2 + 0.9**2) / 2)
    beyond = torch.tensor([1.0], requires_grad=True)
    value_loss(beyond, old[:1], returns[:1], 0.2).backward()
    assert beyond.grad.tolist() == [0.0]


def test_explained_variance_is_one_for_right_values_and_zero_for_a_constant():
    returns = torch.tensor([0.0, 1.0, 2.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(torch.ones(3), returns) == pytest.approx(0.0)
    assert explained_variance(returns, torch.ones(3)) == 0.0


def test_the_head_learns_the_value_of_states():
    critic, hidden = Critic(2), torch.tensor([[3.0, 0.0], [0.0, 0.1]])
    returns = torch.tensor([1.0, -1.0])
    config = TrainConfig(**PPO, value_learning_rate=0.1)
    losses = []
    for _ in range(60):
        old = critic.values(hidden).detach()
        targets = ValueTargets(hidden_NH=hidden, old_N=old, returns_N=returns)
        losses.append(critic.step(targets, config))
    assert losses[0] == pytest.approx(0.5)
    assert losses[-1] < 0.01
    assert critic.values(hidden).tolist() == pytest.approx([1.0, -1.0], abs=0.2)


def test_a_checkpoint_has_the_head_and_its_moments_once_there_was_a_step(tmp_path):
    critic, hidden = Critic(3), torch.eye(3)
    critic.save(tmp_path)
    critic.read(tmp_path)
    assert not (tmp_path / FILE).exists()
    targets = ValueTargets(hidden_NH=hidden, old_N=torch.zeros(3), returns_N=torch.ones(3))
    config = TrainConfig(**PPO)
    critic.step(targets, config)
    critic.save(tmp_path)
    other = Critic(3)
    other.read(tmp_path)
    for each in (critic, other):
        each.step(targets, config)
    assert all(torch.equal(t, other.state()[name]) for name, t in critic.state().items())
    with pytest.raises(BackendError, match="is not that of this model"):
        Critic(4).read(tmp_path)


def rewarded(sequences):
    """The last token of every other sequence earns 1."""
    ends = [len(s.token_ids) - 1 for s in sequences]
    return [
        attrs.evolve(
            s, token_rewards=tuple(float(t == end and n % 2) for t in range(len(s.token_ids)))
        )
        for n, (s, end) in enumerate(zip(sequences, ends, strict=True))
    ]


def test_a_step_of_the_trainer_moves_policy_and_critic(make_policy, sequences):
    trainer = Trainer(make_policy(), progress=False)
    data = rewarded(sequences)
    config = TrainConfig(**PPO, grad_accumulation_sequences=4)
    before = {n: p.detach().clone() for n, p in trainer.policy.trained().items()}
    metrics = trainer.step(data, config)
    assert metrics["loss/value"] > 0
    assert "loss/value_explained_variance" in metrics
    assert float(trainer.critic.weight_H.detach().abs().max()) > 0
    assert any(not torch.equal(p, before[n]) for n, p in trainer.policy.trained().items())
    explained = [trainer.step(data, config)["loss/value_explained_variance"] for _ in range(12)]
    assert explained[-1] > explained[0]


def test_packed_and_unpacked_steps_have_the_same_advantages(make_policy, sequences):
    data, found = rewarded(sequences), []
    for packing in (True, False):
        trainer = Trainer(make_policy(), progress=False)
        metrics = trainer.step(data, TrainConfig(**PPO, packing=packing))
        found.append((metrics["loss/train"], metrics["loss/value"]))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_a_step_that_fails_leaves_the_critic_as_it_was(make_policy, sequences):
    trainer = Trainer(make_policy(), progress=False)
    data = rewarded(sequences)
    trainer.step(data, TrainConfig(**PPO))
    before = trainer.critic.state()
    with pytest.raises(BackendError):
        trainer.step(data, TrainConfig(**PPO | {"learning_rate": 1e30}))
    assert all(torch.equal(t, before[name]) for name, t in trainer.critic.state().items())


def test_a_window_without_a_critic_has_no_targets():
    assert Window(sequences=[row([1.0])]).values is None
