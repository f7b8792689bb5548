"""Keys with a limit of dollars: the models that they register share it."""

from __future__ import annotations

import pytest

import art_core as art
from art_core.testing.echo import EchoBackend
from art_serverless.server.keys import FILE, digest_of_key, server_keys


class DollarBackend(EchoBackend):
    """A step costs a dollar, whatever the clock shows."""

    async def train(self, model, groups, **options):
        result = await super().train(model, groups, **options)
        model.metrics_builder("train").add_cost("gpu", 1.0)
        return result


def keys_of(directory, text):
    directory.mkdir(exist_ok=True)
    file = directory / FILE
    file.write_text(text)
    file.chmod(0o600)
    return server_keys(directory, "127.0.0.1", no_auth=False)[0]


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    monkeypatch.delenv("ART_API_KEY", raising=False)


def test_a_key_has_the_terms_behind_it(tmp_path):
    keys = keys_of(tmp_path / "served", "paying-key usd=25 per_step=0.5\nother-key\n")
    assert keys.accepted == (b"paying-key", b"other-key")
    [budget] = keys.budgets.values()
    assert (budget.usd, budget.per_step) == (25.0, 0.5)
    assert budget.file.parent == tmp_path / "served" / "budgets"
    assert keys.owner("other-key") == ""
    assert keys.owner("paying-key") == digest_of_key(b"paying-key")
    assert "paying-key" not in str(budget.file)


@pytest.mark.parametrize("terms", ["usd=much", "usd", "usd=1 per_day=2", "25"])
def test_terms_that_are_none_are_refused(tmp_path, terms):
    with pytest.raises(art.ConfigError, match="behind a key"):
        keys_of(tmp_path / "served", f"paying-key {terms}\n")


async def groups_of(model):
    async def rollout(answer):
        trajectory = art.Trajectory(messages_and_choices=[{"role": "user", "content": answer}])
        done = await model.openai_client().chat.completions.create(
            model=model.get_inference_name(), messages=trajectory.messages()
        )
        trajectory.messages_and_choices.append(done.choices[0])
        trajectory.reward = float(answer == "yes")
        return trajectory

    groups = [art.TrajectoryGroup(rollout(answer) for answer in ("yes", "no"))]
    return await art.gather_trajectory_groups(groups, pbar_desc=None)


@pytest.mark.parametrize(
    ("usd", "error", "found"),
    [
        (2.5, art.BackendError, r"step needs up to \$1, and \$0.5 of the budget of \$2.5"),
        (2.0, art.RolloutError, r"402 - nothing is left of the budget of \$2"),
    ],
)
async def test_a_key_pays_for_its_models_up_to_its_limit(
    tmp_path, serving, make_model, connect, usd, error, found
):
    keys = keys_of(tmp_path / "served", f"paying-key usd={usd} per_step=1\nother-key\n")
    server = serving(DollarBackend(), keys=keys)

    async def trained(key, name, steps):
        backend = connect(server, api_key=key)
        async with make_model(name) as model:
            await model.register(backend)
            try:
                for _ in range(steps):
                    await model.train(await groups_of(model))
            finally:
                await backend.close()

    await trained("paying-key", "first", 1)
    with pytest.raises(error, match=found):
        await trained("paying-key", "second", 2)
    await trained("other-key", "third", 3)
