"""Supervised fine-tuning on the trainer that all steps use: loss, gradient, optimizer states."""

import math

import pytest

pytest.importorskip("torch")
import torch

from art_core.rl.sequences import TokenSequence
from art_core.rl.sft import sft_config
from art_local.training.trainer import RL, SFT, Trainer

pytestmark = pytest.mark.torch


def lesson(length, *, start, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 256, (length,), generator=generator).tolist()
    trainable = tuple(place >= start for place in range(length))
    return TokenSequence(
        token_ids=tuple(ids),
        trainable=trainable,
        logprobs=tuple(math.nan if t else 0.0 for t in trainable),
    )


@pytest.fixture
def lessons():
    return [lesson(10 + 7 * n, start=3 + 2 * n, seed=n) for n in range(5)]


def oracle(policy, lessons):
    """Transformers' own loss: the mean cross entropy over the labels of the batch."""
    width = max(len(s.token_ids) for s in lessons)
    ids = torch.zeros(len(lessons), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, s in enumerate(lessons):
        n = len(s.token_ids)
        ids[row, :n] = torch.tensor(s.token_ids)
        labels[row, :n] = torch.tensor(
            [t if on else -100 for t, on in zip(s.token_ids, s.trainable, strict=True)]
        )
    loss = policy.base(input_ids=ids, labels=labels, use_cache=False).loss
    parameters = policy.trained()
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return float(loss.detach()), dict(zip(parameters, gradients, strict=True))


class SeenError(Exception):
    """Carries gradients out of the step before it is taken."""


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("lora", [None, (4, 8)])
def test_loss_and_gradient_are_those_of_transformers(make_policy, lessons, lora, packing):
    policy = make_policy(lora=lora)
    if lora:  # B begins at zero, and with it the gradient on A
        with torch.no_grad():
            for parameter in policy.trained().values():
                parameter.add_(torch.randn(parameter.shape, generator=policy.generator) * 0.02)
        policy.refresh()
    loss, gradients = oracle(policy, lessons)
    trainer = Trainer(policy, progress=False)
    found = {}

    def look(*_):
        found.update({n: p.grad.clone() for n, p in policy.trained().items()})
        raise SeenError

    trainer.optimizer.step = look
    config = sft_config(packing=packing, micro_batch_tokens=None if packing else 64)
    sums = []
    accumulated = trainer._accumulated
    trainer._accumulated = lambda *a: sums.append(accumulated(*a)) or sums[-1]
    with pytest.raises(SeenError):
        trainer.fit([lessons], config)
    assert float(torch.stack(sums[0].loss).sum()) == pytest.approx(loss, abs=1e-5)
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)


def test_each_batch_is_an_optimizer_step_that_lowers_the_loss(make_policy, lessons):
    trainer = Trainer(make_policy(lora=None), progress=False)
    losses = []
    for _ in range(8):
        metrics = trainer.fit([lessons[:2], lessons[2:]], sft_config(learning_rate=3e-3))
        losses.append(metrics["loss/train"])
        assert metrics["data/step_num_gradient_steps"] == 2
    assert losses[-1] < 0.8 * losses[0]
    assert not [key for key in metrics if "ratio" in key or "kl" in key]


def test_rewards_and_lessons_have_optimizer_states_of_their_own(make_policy, lessons, sequences):
    def trained(*phases):
        policy = make_policy()
        trainer = Trainer(policy, progress=False)
        for phase in phases:
            if phase == SFT:
                trainer.fit([lessons], sft_config(learning_rate=0.01))
            else:
                trainer.step(sequences, sft_like_rl())
        return trainer

    states = trained(RL, SFT, RL).states()
    assert states.keys() == {RL, SFT}
    counts = {
        phase: {float(tensor) for name, tensor in state.items() if name.startswith("step.")}
        for phase, state in states.items()
    }
    assert counts == {RL: {2.0}, SFT: {1.0}}
    assert trained(RL).states().keys() == {RL}
    again = Trainer(make_policy(), progress=False)
    again.load_states(states, "a checkpoint")
    assert again.states().keys() == states.keys()
    for phase, state in states.items():
        for name, tensor in state.items():
            assert torch.equal(again.states()[phase][name], tensor)


def sft_like_rl():
    from art_core.rl.config import TrainConfig

    return TrainConfig(learning_rate=0.01)
