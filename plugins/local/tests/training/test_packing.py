"""Packing: which sequences share what, and that a pack gives what rows give."""

from __future__ import annotations

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from art_core.rl.config import TrainConfig
from art_core.rl.sequences import TokenSequence
from art_local.training import packing
from art_local.training.batches import collate
from art_local.training.packing import Pack, packed, packed_batches, shared_prefixes
from art_local.training.trainer import Trainer


def sequence(ids, first_trainable=1, advantage=1.0, weight=1.0):
    trainable = tuple(at >= first_trainable for at in range(len(ids)))
    return TokenSequence(
        token_ids=tuple(ids),
        trainable=trainable,
        logprobs=tuple(-float(i) / 100 if t else 0.0 for i, t in zip(ids, trainable, strict=True)),
        advantage=advantage,
        weight=weight,
    )


def groups(prompts=(9, 14), group=4, seed=3):
    """Answers of 1 to 11 tokens, two of them equal and one the beginning of another."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count):
        return torch.randint(0, 256, (count,), generator=generator).tolist()

    made = []
    for prompt in prompts:
        shared = draw(prompt)
        answers = [draw(1 + 3 * place) for place in range(group)]
        answers += [answers[-1], answers[-1][:2]]
        for place, answer in enumerate(answers):
            advantage = 1.0 if place % 2 else -0.5
            made.append(sequence(shared + answer, prompt, advantage, 1 / len(answer)))
    # turns after the prompt: a shared beginning with tokens that bear loss
    turn = sequence(draw(30), 8)
    longer = sequence(list(turn.token_ids) + draw(7), 8, -1.0, 0.2)
    return [*made, turn, longer, sequence(draw(20), 4)]


def test_sequences_that_begin_alike_form_a_pack():
    found = shared_prefixes([sequence(ids) for ids in ([1, 2, 3], [7, 8], [1, 2, 4, 5])])
    assert found == [Pack(prefix=2, members=(0, 2)), Pack(prefix=0, members=(1,))]


def test_a_system_prompt_that_all_share_does_not_join_two_groups():
    # 1 saved token a sequence at the root, 3 at each group
    rows = [[0, 5, 5, 5, 1], [0, 6, 6, 6, 1], [0, 5, 5, 5, 2], [0, 6, 6, 6, 2]]
    found = shared_prefixes([sequence(ids) for ids in rows])
    assert found == [Pack(prefix=4, members=(0, 2)), Pack(prefix=4, members=(1, 3))]


def test_one_far_sequence_does_not_cost_a_group_its_prompt():
    rows = [[0, 5, 5, 5, 1], [0, 5, 5, 5, 2], [0, 9]]
    assert Pack(prefix=4, members=(0, 1)) in shared_prefixes([sequence(ids) for ids in rows])


def test_equal_sequences_are_computed_once():
    batch = packed([Pack(prefix=3, members=(0, 1))], [sequence([4, 5, 6])] * 2)
    assert batch.ids_BS.tolist() == [[4, 5, 6]]
    assert batch.rows_R.tolist() == [0, 1, 0, 1]
    assert batch.sequences_R.tolist() == [0, 0, 1, 1]


def test_rows_name_the_hidden_state_before_their_token():
    one, other = sequence([7, 8, 9, 10], 2, 2.0, 0.5), sequence([7, 8, 20], 2, -1.0, 0.25)
    batch = packed([Pack(prefix=2, members=(0, 1))], [one, other])
    assert batch.ids_BS.tolist() == [[7, 8, 9, 10, 20]]
    # the prompt's last token, place 1, is followed by 9 and by 20
    assert batch.rows_R.tolist() == [1, 2, 1]
    assert batch.targets_R.tolist() == [9, 10, 20]
    assert batch.advantages_R.tolist() == [2.0, 2.0, -1.0]
    assert batch.weights_R.tolist() == [0.5, 0.5, 0.25]
    assert batch.layout.positions_S.tolist() == [0, 1, 2, 3, 2]


def test_a_pack_over_the_budget_is_split_with_its_prefix_in_each_part():
    rows = [sequence([*range(8), 50 + i, 60 + i]) for i in range(4)]
    # 8 + 2 + 2 = 12 tokens
    sizes = [b.ids_BS.numel() for b in packed_batches(rows, 12)]
    assert sizes == [12, 12]


def test_a_sequence_over_the_budget_takes_partners_along_up_to_a_quarter():
    rows = [sequence([*range(16), 50 + i, 60 + i, 70 + i, 80 + i]) for i in range(3)]
    # 20 tokens and 4 more are 24, within 25; the third stands alone
    assert [b.ids_BS.numel() for b in packed_batches(rows, 10)] == [24, 20]


def test_packs_are_joined_up_to_the_tokens_asked_for():
    rows = [sequence([i] * 10) for i in range(4)]
    assert [b.ids_BS.numel() for b in packed_batches(rows, 100, joined=20)] == [20, 20]


sequences_of_few_tokens = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=12
)


@given(sequences_of_few_tokens, st.integers(1, 40))
def test_each_sequence_lies_in_one_micro_batch_and_can_be_read_back(rows, budget):
    made = [sequence(ids) for ids in rows]
    read: dict[int, list[int]] = {}
    for batch in packed_batches(made, budget):
        ids, mask = batch.ids_BS[0], batch.layout.mask_SS
        if batch.ids_BS.numel() > budget:
            longest = max(len(made[m].token_ids) for m in batch.sequences_R.tolist() or [0])
            assert batch.ids_BS.numel() <= max(packing.SLACK * longest, 9)
        for member in batch.sequences_R.unique().tolist():
            assert member not in read
            rows_R = batch.rows_R[batch.sequences_R == member]
            # what the last row attends to is the sequence without its last token
            seen = ids[mask[rows_R[-1]]].tolist()
            read[member] = [*seen, int(batch.targets_R[batch.sequences_R == member][-1])]
            assert batch.layout.positions_S[mask[rows_R[-1]]].tolist() == list(range(len(seen)))
    wanted = {place: ids for place, ids in enumerate(rows) if len(ids) > 1}
    assert read == wanted


@given(sequences_of_few_tokens)
def test_no_packing_saves_more_than_joining_all_or_none(rows):
    made = [sequence(ids) for ids in rows]
    found = shared_prefixes(made)
    assert sorted(m for pack in found for m in pack.members) == list(range(len(rows)))
    for pack in found:
        assert len({made[m].token_ids[: pack.prefix] for m in pack.members}) == 1
    saved = sum(pack.prefix * (len(pack.members) - 1) for pack in found)
    common = 0
    while all(len(r) > common and r[common] == rows[0][common] for r in rows):
        common += 1
    assert saved >= common * (len(rows) - 1)


def gradients(policy, batches):
    """Log-probs by sequence, and the gradient of a loss over them."""
    found: dict[int, list[float]] = {}
    for parameter in policy.trained().values():
        parameter.grad = None
    for batch in batches:
        logprobs_R, _ = policy.logprobs(
            batch.ids_BS, batch.rows_R, batch.targets_R, chunk_size=16, layout=batch.layout
        )
        (logprobs_R * batch.advantages_R * batch.weights_R).sum().backward()
        for owner, value in zip(batch.sequences_R.tolist(), logprobs_R.tolist(), strict=True):
            found.setdefault(owner, []).append(value)
    return found, {name: p.grad.clone() for name, p in policy.trained().items()}


@pytest.mark.parametrize("budget", [30, 60, 4096])
@pytest.mark.parametrize("lora", [(4, 8), None], ids=["LoRA", "whole"])
def test_packs_and_rows_give_the_same_log_probs_and_gradients(make_policy, lora, budget):
    policy, made = make_policy(lora=lora), groups()
    rows, of_rows = gradients(policy, [collate([s], 0, [i]) for i, s in enumerate(made)])
    packs, of_packs = gradients(policy, packed_batches(made, budget))
    assert set(packs) == set(rows)
    for owner, values in rows.items():
        assert packs[owner] == pytest.approx(values, abs=1e-5)
    for name, gradient in of_rows.items():
        torch.testing.assert_close(of_packs[name], gradient, atol=1e-5, rtol=1e-4)


def test_a_wrong_mask_would_be_seen(make_policy):
    policy, made = make_policy(lora=None), groups()
    rows, of_rows = gradients(policy, [collate([s], 0, [i]) for i, s in enumerate(made)])
    batches = [
        attrs.evolve(b, layout=packing.layout_of([one_segment(b)]))
        for b in packed_batches(made, 4096)
    ]
    packs, of_packs = gradients(policy, batches)
    worst = max(abs(a - b) for o in rows for a, b in zip(rows[o], packs[o], strict=True))
    assert worst > 1e-2
    assert max(float((of_packs[n] - of_rows[n]).abs().max()) for n in of_rows) > 1e-2


def one_segment(batch):
    """The whole row as one sequence: each token sees all before it, of other sequences too."""
    return packing.Shape(prefix=0, segments=(batch.ids_BS.numel(),))


@pytest.mark.parametrize("loss_fn", ["cispo", "ppo", "gspo"])
def test_a_step_is_the_same_packed_and_in_rows(make_policy, loss_fn):
    results = {}
    for packing_on in (True, False):
        trainer = Trainer(make_policy(), progress=False)
        config = TrainConfig(loss_fn=loss_fn, packing=packing_on, learning_rate=1e-3)
        results[packing_on] = [trainer.step(groups(), config) for _ in range(2)]
        assert trainer.policy.packs is (True if packing_on else None)
    for one, other in zip(results[True], results[False], strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


def test_rows_without_anything_in_common_are_not_padded(make_policy, monkeypatch):
    seen = []
    policy = make_policy()
    whole = policy.logprobs

    def watched(ids, *inputs, **options):
        seen.append(ids.numel())
        return whole(ids, *inputs, **options)

    policy.packs, policy.logprobs = True, watched
    made = [sequence([i] * (5 + i)) for i in range(8)]
    Trainer(policy, progress=False).step(made, TrainConfig())
    assert sum(seen) == sum(len(s.token_ids) for s in made)
