"""The mean reward of a scenario in earlier steps is a baseline, also of a run that resumes."""

import json

import pytest

import art_core as art
from art_core.base.errors import ConfigError
from art_core.data.store import append_groups, read_groups
from art_core.rl.batch import training_batch
from art_core.run.scenario_means import ScenarioMeans
from art_core.testing.echo import EchoBackend

OPTIONS = {"advantage_baseline": "scenario_mean", "mask_truncated": False}


def attempt(reward):
    choice = {
        "message": {"role": "assistant", "content": "yes"},
        "finish_reason": "stop",
        "prompt_token_ids": [1],
        "token_ids": [2],
        "logprobs": {"content": [{"logprob": -1.0}]},
    }
    return art.Trajectory(messages_and_choices=[choice], reward=reward)


def group(*rewards, scenario="sky", **more):
    return art.TrajectoryGroup(map(attempt, rewards), metadata={"scenario_id": scenario} | more)


@pytest.fixture
async def opened(tmp_path):
    models = []

    async def make():
        model = art.TrainableModel(
            name="m", project="p", base_model="echo", base_path=tmp_path, sinks=[]
        )
        models.append(model)
        await model.register(EchoBackend())
        return model

    yield make
    for model in models:
        await model.close()
        await model.backend.close()


def baselines(model, step):
    run = art.LoggedRun(model.run_dir)
    return [group.baseline for group in run.groups(step, "train")]


async def test_a_scenario_is_compared_with_the_mean_of_all_its_earlier_attempts(opened):
    model = await opened()
    await model.train([group(0.0, 1.0), group(5.0, scenario="sea")], **OPTIONS)
    await model.train([group(1.0, 1.0)], **OPTIONS)
    await model.train([group(0.0), group(3.0, scenario="sea")], **OPTIONS)
    await model.train([group(2.0)], **OPTIONS)
    assert model.run.history.last.metrics["data/step_num_groups_trainable"] == 1.0
    assert model.run.history.last.metrics["train/num_groups_trainable"] == 1.0
    found = [baselines(model, step) for step in (1, 2, 3, 4)]
    assert found == [[None, None], [0.5], [0.75, 5.0], [0.6]]


async def test_players_of_a_scenario_have_means_of_their_own(opened):
    model = await opened()
    await model.train([group(0.0, player="white"), group(1.0, player="black")], **OPTIONS)
    await model.train([group(0.0, player="white"), group(0.0, player="black")], **OPTIONS)
    assert baselines(model, 2) == [0.0, 1.0]


async def test_a_run_that_resumes_or_goes_back_has_the_same_means(opened):
    model = await opened()
    for reward in (0.1, 0.2, 0.4):
        await model.train([group(reward)], **OPTIONS)
    await model.close()
    resumed = await opened()
    await resumed.train([group(1.0)], **OPTIONS)
    assert baselines(resumed, 4) == [(0.1 + 0.2 + 0.4) / 3]
    means = ScenarioMeans(resumed.run_dir / "trajectories" / "train")
    assert [g.baseline for g in means.given_to([group(0.0)], 3)] == [(0.1 + 0.2) / 2]


async def test_a_group_without_a_scenario_is_refused_before_anything_is_stored(opened):
    model = await opened()
    nameless = art.TrajectoryGroup([attempt(1.0)])
    with pytest.raises(ConfigError, match="needs to know the scenario of each group. Give"):
        await model.train([nameless], **OPTIONS)
    assert not (model.run_dir / "trajectories").exists()
    await model.train([nameless])


async def test_files_are_read_again_only_when_they_have_changed(opened):
    model = await opened()
    await model.train([group(1.0)], **OPTIONS)
    folder = model.run_dir / "trajectories" / "train"
    (file,) = folder.glob("*.jsonl")
    (folder / "notes.jsonl").write_text("{}\n")
    means = ScenarioMeans(folder)
    assert means.given_to([group(0.0)], 2)[0].baseline == 1.0
    lines = [{"metadata": {"scenario_id": "sky"}, "trajectories": [{"reward": 4.0}]}]
    lines += [{"metadata": {}, "trajectories": []}, {"trajectories": 3}]
    file.write_text("\n".join(map(json.dumps, lines)) + '\n{"torn')
    assert means.given_to([group(0.0)], 2)[0].baseline == 4.0
    assert means.given_to([group(0.0)], 2)[0].baseline == 4.0


def advantages(*groups, **options):
    config = art.TrainConfig(advantage_baseline="scenario_mean", **options)
    return [s.advantage for s in training_batch(groups, config).sequences]


def with_baseline(value, *rewards):
    return art.TrajectoryGroup(map(attempt, rewards), baseline=value)


def test_a_group_without_spread_and_a_single_attempt_teach_something():
    assert advantages(with_baseline(0.25, 1.0, 1.0), with_baseline(2.0, 1.5)) == [0.75, 0.75, -0.5]
    assert advantages(with_baseline(0.3, 0.1 + 0.2)) == []


def test_the_first_time_a_scenario_is_compared_with_its_group():
    assert advantages(with_baseline(None, 0.0, 2.0)) == [-1.0, 1.0]


def test_the_std_of_the_step_divides_all_of_them():
    groups = with_baseline(0.0, 1.0, 1.0), with_baseline(None, 1.0, 5.0)
    assert advantages(*groups, scale_rewards="batch") == pytest.approx(
        [1 / 3**0.5, 1 / 3**0.5, -2 / 3**0.5, 2 / 3**0.5]
    )


def test_the_baseline_is_stored_with_the_group_and_stays_when_it_is_judged(tmp_path):
    known = with_baseline(0.5, 1.0)
    append_groups(tmp_path / "1.jsonl", [known])
    assert [group.baseline for group in read_groups(tmp_path / "1.jsonl")] == [0.5]
    assert known.with_trajectories([]).baseline == 0.5
    assert "baseline" not in with_baseline(None, 1.0).to_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward_weights": {"a": 1.0}}, "keeps the mean of one reward, and reward_weights"),
        ({"scale_rewards": True}, "scale_rewards='group' divides by a spread"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        art.TrainConfig(advantage_baseline="scenario_mean", **options)
