"""The rubric of the example, over an echo whose answers are known."""

import runpy
from pathlib import Path

import pytest

import art_core as art
from art_core.testing.echo import EchoBackend
from art_verifiers import verifiers_rollout, verifiers_scenarios

EXAMPLE = Path(__file__).parents[3] / "examples" / "verifiers_words.py"


@pytest.mark.parametrize(
    ("says", "reward"), [("cold", 1.0), ("warm", 0.3), ("Cold", 0.0), ("It is cold.", 0.0)]
)
async def test_an_opposite_is_paid_by_its_form_and_its_word(says, reward, tmp_path):
    world = runpy.run_path(str(EXAMPLE), run_name="example")["load_environment"]()
    scenario = next(s for s in verifiers_scenarios(world) if s["answer"] == "cold")
    seen = []
    backend = EchoBackend(reply=lambda messages, step: seen.append(messages) or says)
    async with art.TrainableModel(
        name="m", project="p", base_model="echo", base_path=tmp_path, sinks=[]
    ) as model:
        await model.register(backend)
        attempt = await verifiers_rollout(world, options={"max_tokens": 6})(model, scenario)
    await backend.close()
    assert attempt.reward == pytest.approx(reward)
    assert [m["content"] for m in seen[0]] == [
        "The opposite of strong?", "weak", "The opposite of hot?",
    ]  # fmt: skip
