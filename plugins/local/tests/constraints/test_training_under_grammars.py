"""What is trained of constrained answers: the log-probs among the allowed tokens."""

from __future__ import annotations

import asyncio
import json

import attrs
import pytest
import torch
from torch.nn import functional
from transformers import AutoTokenizer

from art_core.base.errors import ConfigError, EngineError
from art_core.endpoint.engine import Sampling
from art_core.rl.config import TrainConfig
from art_core.rl.sequences import TokenSequence
from art_local.constraints.vocabulary import Vocabulary
from art_local.engine import TransformersEngine
from art_local.engine.sampling import draw
from art_local.training.allowed import with_allowed
from art_local.training.batches import Allowed, collate
from art_local.training.logprobs import OutputHead, token_logprobs
from art_local.training.packing import packed_batches
from art_local.training.trainer import Trainer

GRAMMARS = ("start: /[ab]{3,9}/", 'start: %json {"type": "array", "items": {"enum": [1, "x"]}}')


@pytest.fixture(scope="module")
def vocabulary(tiny_directory):
    return Vocabulary(AutoTokenizer.from_pretrained(tiny_directory), 260)


def packed_bits(allowed_CV):
    weights = 2 ** torch.arange(8)
    padded = functional.pad(allowed_CV.long(), (0, -allowed_CV.shape[1] % 8))
    return (padded.unflatten(1, (-1, 8)) * weights).sum(-1).to(torch.uint8)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("trains_head", [False, True])
def test_log_probs_entropies_and_gradients_are_those_of_a_softmax_over_the_allowed(
    softcap, trains_head
):
    generator = torch.Generator().manual_seed(0)
    hidden_RH = torch.randn(7, 6, generator=generator, requires_grad=True)
    weight_VH = torch.randn(21, 6, generator=generator, requires_grad=trains_head)
    allowed_CV = torch.rand(2, 21, generator=generator) < 0.4
    masks_R = torch.tensor([0, -1, 1, 1, -1, 0, 0])
    targets_R = torch.tensor([int(allowed_CV[max(m, 0)].nonzero()[0]) for m in masks_R])
    weights_R = torch.randn(7, generator=generator)

    def of(logprobs_R, entropy_R):
        loss = (logprobs_R * weights_R).sum() + entropy_R.sum()
        wanted = [hidden_RH, weight_VH] if trains_head else [hidden_RH]
        return logprobs_R, entropy_R, *torch.autograd.grad(loss, wanted)

    head = OutputHead(weight_VH=weight_VH, softcap=softcap)
    allowed = Allowed(bits_CK=packed_bits(allowed_CV), masks_R=masks_R)
    found = of(
        *token_logprobs(
            hidden_RH, head, targets_R, chunk_size=3, entropy_gradient=True, allowed=allowed
        )
    )
    logits_RV = hidden_RH @ weight_VH.T
    if softcap:
        logits_RV = softcap * torch.tanh(logits_RV / softcap)
    free_R1 = (masks_R < 0)[:, None]
    kept_RV = free_R1 | allowed_CV[masks_R.clamp(min=0)]
    dense_RV = logits_RV.masked_fill(~kept_RV, -1e9).log_softmax(1)
    entropy_R = -(dense_RV.exp() * dense_RV.masked_fill(~kept_RV, 0.0)).sum(1)
    wanted = of(dense_RV.gather(1, targets_R[:, None])[:, 0], entropy_R)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_draw_takes_allowed_tokens_only_and_reports_their_log_probs():
    logits_NV = torch.tensor([[3.0, 2.0, 1.0, 0.0], [3.0, 2.0, 1.0, 0.0]])
    samplings = [Sampling(max_tokens=1, top_logprobs=4)] * 2
    for uniform in (0.0, 0.4, 0.999):
        free, held = draw(logits_NV, samplings, [uniform] * 2, [None] * 2, {1: bytes([0b1010])})
        assert held[0] in (1, 3)
        wanted = torch.tensor([2.0, 0.0]).log_softmax(0)[(1, 3).index(held[0])]
        assert held[1] == pytest.approx(float(wanted))
        assert free[1] == pytest.approx(float(logits_NV[0].log_softmax(0)[free[0]]))
        assert [lp for _, lp in held[2]][2:] == [-float("inf")] * 2
    assert logits_NV.tolist() == [[3.0, 2.0, 1.0, 0.0]] * 2


def test_a_number_of_0_in_a_race_draws_no_token_that_is_not_allowed():
    logits_NV, race_V = torch.zeros(1, 4), torch.tensor([0.0, 1.0, 0.5, 1.0])
    sampling = Sampling(max_tokens=1, seed=0)
    assert draw(logits_NV, [sampling], [0.5], [race_V], {0: bytes([0b1110])})[0][0] == 2
    assert draw(logits_NV, [sampling], [0.5], [race_V], {})[0][0] == 0


def test_biases_and_min_p_change_the_draw_and_not_the_log_probs():
    logits_NV = torch.tensor([[1.0, 0.0, -1.0, -8.0]])
    logprobs_V = logits_NV[0].log_softmax(0)

    def drawn(**options):
        sampling = Sampling(max_tokens=1, **options)
        spread = [draw(logits_NV, [sampling], [(u + 0.5) / 50], [None])[0] for u in range(50)]
        for token, logprob, _ in spread:
            assert logprob == pytest.approx(float(logprobs_V[token]))
        return [sum(each[0] == token for each in spread) for token in range(4)]

    assert drawn(min_p=0.3) == pytest.approx([50 * 0.731, 50 * 0.269, 0, 0], abs=1.1)
    assert drawn(min_p=0.3, top_p=0.5) == [50, 0, 0, 0]
    assert drawn(logit_bias=((3, 100.0),)) == [0, 0, 0, 50]
    assert drawn(logit_bias=((0, -100.0), (1, -100.0)), temperature=0.0) == [0, 0, 50, 0]
    half = drawn(logit_bias=((0, -1.0), (2, -100.0), (3, -100.0)))
    assert half == pytest.approx([25, 25, 0, 0], abs=1.1)
    # temperature comes before min_p
    assert drawn(min_p=0.3, temperature=2.0)[2] > 0


async def sampled(engine, grammar, seed, **options):
    sampling = Sampling(max_tokens=24, seed=seed, grammar=grammar, stream=False, **options)
    return [token async for token in engine.generate((10, 20, 30), sampling, "base")]


def sequences_of(engine, count=6):
    async def all_of():
        asked = [
            sampled(engine, grammar, seed) for seed in range(count) for grammar in (*GRAMMARS, None)
        ]
        return await asyncio.gather(*asked)

    grammars = [grammar for _ in range(count) for grammar in (*GRAMMARS, None)]
    for place, (tokens, grammar) in enumerate(zip(asyncio.run(all_of()), grammars, strict=True)):
        ids = [token.id for token in tokens]
        yield TokenSequence(
            token_ids=(10, 20, 30, *ids),
            trainable=(False,) * 3 + (True,) * len(ids),
            logprobs=(0.0,) * 3 + tuple(token.logprob for token in tokens),
            advantage=1.0 if place % 2 else -1.0,
            weight=1 / len(ids),
            grammars=() if grammar is None else ((3, 3 + len(ids), grammar),),
        )


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("packing", [False, True])
def test_the_ratio_of_an_unchanged_policy_is_1_for_constrained_and_free_answers_of_a_batch(
    make_policy, vocabulary, deterministic, packing
):
    policy = make_policy()
    engine = TransformersEngine(policy.base, vocabulary=vocabulary, deterministic=deterministic)
    sequences = [*sequences_of(engine)]
    texts = [bytes(i for i in s.token_ids[3:] if i < 256) for s in sequences]
    assert all(set(text) <= set(b"ab") for text in texts[::3])
    assert any(isinstance(json.loads(t), list) for t in texts[1::3] if t.endswith(b"]"))
    config = TrainConfig(packing=packing, learning_rate=0.01)
    metrics = Trainer(policy, progress=False, vocabulary=vocabulary).step(sequences, config)
    assert metrics["loss/importance_ratio_mean"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["loss/importance_ratio_p99"] == pytest.approx(1.0, abs=1e-4)
    assert metrics["loss/engine_logprob_diff"] < 1e-5
    asyncio.run(engine.close())


def test_packed_and_padded_rows_train_the_same(make_policy, vocabulary):
    policy = make_policy()
    engine = TransformersEngine(policy.base, vocabulary=vocabulary)
    sequences = [*sequences_of(engine)]
    # equal tokens of which one was sampled under a grammar, and the other was not
    sequences += [attrs.evolve(sequences[0], grammars=())]
    asyncio.run(engine.close())
    found = {}
    for packing in (False, True):
        other = make_policy()
        config = TrainConfig(packing=packing, learning_rate=0.01, entropy_coef=0.1)
        metrics = Trainer(other, progress=False, vocabulary=vocabulary).step(sequences, config)
        found[packing] = metrics["loss/grad_norm"], metrics["loss/entropy"]
    assert found[True] == pytest.approx(found[False], rel=1e-4)


def test_a_token_that_had_no_alternative_has_no_gradient(make_policy, vocabulary):
    policy = make_policy()
    forced = TokenSequence(
        token_ids=(1, 2, *b"abc", 258),
        trainable=(False, False, True, True, True, True),
        logprobs=(0.0,) * 6,
        advantage=1.0,
        grammars=((2, 6, 'start: "abc"'),),
    )
    metrics = Trainer(policy, progress=False, vocabulary=vocabulary).step([forced], TrainConfig())
    assert metrics["loss/grad_norm"] == 0.0
    assert metrics["loss/engine_logprob_diff"] == 0.0
    assert metrics["loss/entropy"] == 0.0


def test_masks_are_stored_once_for_equal_places(vocabulary):
    sequence = TokenSequence(
        token_ids=(1, *b"aaaaaaaa"),
        trainable=(False, *(True,) * 8),
        logprobs=(0.0,) * 9,
        grammars=((1, 9, "start: /a{8,}/"),),
    )
    batch = with_allowed(collate([sequence] * 3), [sequence] * 3, vocabulary)
    assert batch.allowed.bits_CK.shape[0] < 8
    (packed,) = packed_batches([sequence] * 3, 100)
    again = with_allowed(packed, [sequence] * 3, vocabulary)
    torch.testing.assert_close(again.allowed.bits_CK, batch.allowed.bits_CK)


def test_a_trainer_without_a_vocabulary_or_of_other_answers_says_so(make_policy, vocabulary):
    sequence = TokenSequence(
        token_ids=(1, 2, 3),
        trainable=(False, True, True),
        logprobs=(0.0, -1.0, -1.0),
        grammars=((1, 3, 'start: "abc"'),),
    )
    with pytest.raises(ConfigError, match="sampled under a grammar"):
        with_allowed(collate([sequence]), [sequence], None)
    trainer = Trainer(make_policy(), progress=False, vocabulary=vocabulary)
    with pytest.raises(ConfigError, match="not allowed by the answer's grammar"):
        trainer.step([sequence], TrainConfig())


async def test_a_request_whose_grammar_fails_ends_alone(make_policy, vocabulary):
    engine = TransformersEngine(make_policy().base, vocabulary=vocabulary)
    exploding = "start: /(a{1,1000}){1,1000}b{1000}/"
    sampling = Sampling(max_tokens=400, seed=0, grammar=exploding, logit_bias=((ord("b"), -100.0),))

    async def failing():
        with pytest.raises(EngineError, match="cannot be followed"):
            async for _ in engine.generate((1, 2), sampling, "base"):
                pass

    tokens, _ = await asyncio.gather(sampled(engine, GRAMMARS[0], 1), failing())
    assert tokens[-1].finish == "stop"
    with pytest.raises(EngineError, match="does not compile"):
        await sampled(engine, "start: x", 0)
    with pytest.raises(EngineError, match="outside the vocabulary"):
        await sampled(engine, None, 0, logit_bias=((260, 1.0),))
    await engine.close()
    bare = TransformersEngine(make_policy().base)
    with pytest.raises(EngineError, match="samples without grammars"):
        await sampled(bare, GRAMMARS[0], 0)
    await bare.close()


async def test_equal_seeds_draw_equal_constrained_answers(make_policy, vocabulary):
    engine = TransformersEngine(make_policy().base, vocabulary=vocabulary)
    one, two = [
        [token.id for token in await sampled(engine, GRAMMARS[1], 5, min_p=0.01)] for _ in "ab"
    ]
    assert one == two
    await engine.close()
