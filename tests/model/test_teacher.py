"""Teachers: checked when they are made, paid when they score, and stored with what they scored."""

import asyncio

import pytest
from score_server import ScoreServer

import art_core as art
from art_core.base.errors import BackendError, ConfigError
from art_core.data.store import read_groups, trajectory_file
from art_core.data.trajectory import tokens_of
from art_core.testing.echo import EchoBackend


@pytest.fixture
async def backend():
    made = EchoBackend(gpu_cost_per_hour_usd=1.0)
    yield made
    await made.close()


@pytest.fixture
async def model(tmp_path, backend):
    made = art.TrainableModel(
        name="student", project="p", base_model="base", base_path=tmp_path, sinks=[]
    )
    await made.register(backend)
    yield made
    await made.close()


@pytest.fixture
def server():
    made = ScoreServer()
    yield made
    made.close()


async def gathered(model, *texts, turns=1):
    async def rollout(text):
        conversation = [{"role": "user", "content": text}]
        for _ in range(turns):
            completion = await model.openai_client().chat.completions.create(
                model=model.get_inference_name(),
                messages=art.History(messages_and_choices=conversation).messages(),
            )
            conversation += [completion.choices[0], {"role": "user", "content": text}]
        return art.Trajectory(messages_and_choices=conversation[:-1])

    return await art.gather_trajectory_groups(
        [art.TrajectoryGroup(rollout(text) for text in texts)], pbar_desc=None
    )


def choices(groups):
    return [
        item
        for group in groups
        for trajectory in group
        for item in trajectory.messages_and_choices
        if hasattr(item, "finish_reason")
    ]


async def test_an_older_step_teaches_and_its_scores_are_stored_and_in_the_row(model):
    groups = await gathered(model, "yes", "no")
    groups[0].trajectories[0].reward = 1.0
    await model.train(groups)
    teacher = await art.teacher(model, step=0)
    assert (teacher.name, teacher.charged) == ("student@0", False)
    groups = await gathered(model, "yes", "no")
    result = await model.train(groups, teacher=teacher)
    # EchoBackend: every token of step 0 has log-prob -0.5, of step 1 less
    mine = tokens_of(choices(groups)[0]).logprobs[0]
    assert result.metrics["loss/teacher_kl"] == pytest.approx(mine + 0.5)
    assert model.run.history.last.metrics["time/step_teacher_s"] > 0
    stored = list(read_groups(trajectory_file(model.run_dir, "train", 2)))
    (first, _) = stored[0].trajectories
    found = tokens_of(first.messages_and_choices[1])
    assert set(found.teacher_logprobs) == {-0.5}
    assert not [key for key in model.run.history.last.metrics if key.startswith("costs/train")]


async def test_a_teacher_at_an_endpoint_is_paid_for_each_token(model, server):
    model.metrics_builder().register_model_pricing(
        "big", prompt_per_million=1e6, completion_per_million=0.0
    )
    teacher = await art.teacher(model, "big", base_url=server.url, api_key="key")
    probed = len(server.asked[0]["prompt"])
    groups = await gathered(model, "yes", "no")
    result = await model.train(groups, teacher=teacher)
    assert {"Bearer key"} == set(server.keys)
    lengths = [len(asked["prompt"]) for asked in server.asked[1:]]
    assert sorted(lengths) == sorted(len(t.prompt_ids + t.completion_ids) for t in tokens(groups))
    assert model.run.history.last.metrics["costs/train/teacher/big"] == probed + sum(lengths)
    each = [
        logprob + token / 100
        for t in tokens(groups)
        for token, logprob in zip(t.completion_ids, t.logprobs, strict=True)
    ]
    assert result.metrics["loss/teacher_kl"] == pytest.approx(sum(each) / len(each))


def tokens(groups):
    return [tokens_of(choice) for choice in choices(groups)]


async def test_equal_texts_are_scored_once_and_a_second_try_pays_nothing(model, server):
    teacher = await art.teacher(model, "big", base_url=server.url)
    groups = await gathered(model, "yes", "yes", "no")
    await teacher.score(groups)
    assert len(server.asked) == 1 + 2
    await teacher.score(groups)
    assert len(server.asked) == 1 + 2
    assert "teacher_logprobs" in str(groups[0].to_dict())
    assert "teacher_logprobs" not in str(groups[0].to_dict(tokens=False))
    assert [t.teacher_logprobs for t in tokens(groups)] == [
        tuple(-token / 100 for token in t.completion_ids) for t in tokens(groups)
    ]


async def test_the_turns_of_a_conversation_are_scored_in_one_request(model, server):
    teacher = await art.teacher(model, "big", base_url=server.url)
    groups = await gathered(model, "yes", turns=2)
    await teacher.score(groups)
    assert len(server.asked) == 1 + 1
    first, second = choices(groups)
    second.prompt_token_ids = [65, *second.prompt_token_ids]  # as after a dropped thought
    first.teacher_logprobs = None
    await teacher.score(groups)
    assert len(server.asked) == 1 + 1 + 1, "the second text was scored before"
    assert all(t.teacher_logprobs for t in tokens(groups))


async def test_an_attempt_without_an_answer_is_passed_over(model, server):
    teacher = await art.teacher(model, "big", base_url=server.url)
    question = {"role": "user", "content": "?"}
    attempt = art.Trajectory(messages_and_choices=[question])
    await teacher.score([art.TrajectoryGroup([attempt])])
    assert len(server.asked) == 1


async def test_cut_off_conversations_are_not_paid_where_they_are_not_trained(model, server):
    teacher = await art.teacher(model, "big", base_url=server.url)
    groups = await gathered(model, "yes", "no")
    choices(groups)[0].finish_reason = "length"
    await teacher.score(groups, skip_truncated=True)
    assert [t.teacher_logprobs is None for t in tokens(groups)] == [True, False]
    await teacher.score(groups)
    assert [t.teacher_logprobs is None for t in tokens(groups)] == [False, False]


async def test_a_prompted_teacher_scores_the_answer_after_its_own_messages(model, server):
    def hinted(messages):
        return [{"role": "system", "content": "Say yes."}, *messages]

    teacher = await art.teacher(model, "big", base_url=server.url, messages=hinted)
    groups = await gathered(model, "yes", "yes")
    groups[0].trajectories[0].tools = [{"type": "function", "function": {"name": "f"}}]
    await teacher.score(groups)
    chats = [asked for asked in server.asked if "messages" in asked]
    assert [chat["messages"][0]["content"] for chat in chats] == ["Say yes."] * 3
    assert [chat.get("tools") for chat in chats[1:]].count(None) == 1
    texts = [asked["prompt"] for asked in server.asked if "prompt" in asked][1:]
    assert {bytes(text) for text in texts} == {b"Say yes.yesyes\n"}
    assert [t.teacher_logprobs for t in tokens(groups)] == [
        tuple(-token / 100 for token in b"yes\n")
    ] * 2


async def test_a_prompted_teacher_needs_the_ids_of_its_prompt(model, server):
    server.gives_ids = False
    with pytest.raises(ConfigError, match="returns no token ids of a prompt"):
        await art.teacher(model, "big", base_url=server.url, messages=list)


async def test_a_teacher_without_log_probs_is_refused_before_anything_is_sampled_from_it(
    model, server
):
    server.way = "nothing"
    with pytest.raises(ConfigError, match="'big' gives no log-probs of the tokens of a prompt"):
        await art.teacher(model, "big", base_url=server.url)


async def test_another_vocabulary_is_refused_with_an_example(model, server):
    server.texts = lambda token: chr(token + 1)
    with pytest.raises(ConfigError, match=r"different vocabularies: .* tokens differ, token 87 is"):
        await art.teacher(model, "big", base_url=server.url)


async def test_a_vocabulary_that_changes_later_is_refused_before_the_step(model, server, backend):
    teacher = await art.teacher(model, "big", base_url=server.url)
    server.texts = lambda token: "?"
    groups = await gathered(model, "yes", "no")
    with pytest.raises(ConfigError, match="different vocabularies"):
        await model.train(groups, teacher=teacher)
    assert await backend.step(model) == 0
    assert trajectory_file(model.run_dir, "train", 1).exists(), "no data is lost"


async def test_tokens_that_show_no_text_are_not_compared(model, server):
    server.texts = lambda token: "\ufffd" if token % 2 else ""
    assert (await art.teacher(model, "big", base_url=server.url)).name == "big"


async def test_a_failing_teacher_leaves_the_groups_and_the_step(model, server, backend):
    teacher = await art.teacher(model, "big", base_url=server.url)
    server.way = 400
    groups = await gathered(model, "yes", "no")
    with pytest.raises(BackendError, match="did not score"):
        await model.train(groups, teacher=teacher)
    assert await backend.step(model) == 0
    server.way = "echo"
    assert (await model.train(groups, teacher=teacher)).step == 1
    stored = list(read_groups(trajectory_file(model.run_dir, "train", 1)))
    assert len(stored) == 1
    assert tokens_of(stored[0].trajectories[0].messages_and_choices[1]).teacher_logprobs


class Remembers(EchoBackend):
    """Keeps the options of its steps."""

    trained = None

    async def train(self, model, groups, **options):
        self.trained = [*(self.trained or []), options]
        return await super().train(model, groups, **options)


async def test_with_a_reward_the_loss_is_the_one_that_was_asked_for(model, server):
    backend = Remembers()
    await model.register(backend)
    teacher = await art.teacher(model, "big", base_url=server.url)
    groups = await gathered(model, "yes")
    for given in ({}, {"loss_fn": "distill"}, {"loss_fn": "ppo"}, {"distill_coef": 0.5}):
        await model.train(groups, teacher=teacher, **given)
    assert backend.trained == [
        {"loss_fn": "distill"},
        {"loss_fn": "distill"},
        {"distill_coef": 1.0, "loss_fn": "ppo"},
        {"distill_coef": 0.5},
    ]
    await backend.close()


async def test_wrong_options_are_refused_before_the_teacher_is_paid(model, server):
    teacher = await art.teacher(model, "big", base_url=server.url)
    groups = await gathered(model, "yes")
    with pytest.raises(ConfigError, match="no training option 'epsilo'"):
        await model.train(groups, teacher=teacher, epsilo=0.1)
    assert len(server.asked) == 1


async def test_a_teacher_of_another_model_is_refused(model, server, tmp_path, backend):
    teacher = await art.teacher(model, "big", base_url=server.url)
    other = art.TrainableModel(
        name="other", project="p", base_model="base", base_path=tmp_path, sinks=[]
    )
    await other.register(backend)
    with pytest.raises(ConfigError, match="was made for model 'student', not for 'other'"):
        await other.train(await gathered(other, "yes"), teacher=teacher)
    paid = await art.teacher(model, other)
    assert (paid.name, paid.charged) == ("other", False)
    await other.close()


async def test_a_model_at_an_endpoint_can_teach(model, server, tmp_path):
    big = art.Model(
        name="big",
        project="p",
        inference_model_name="big-1",
        inference_base_url=server.url,
        base_path=tmp_path,
        sinks=[],
    )
    teacher = await art.teacher(model, big)
    assert (teacher.name, teacher.charged) == ("big-1", True)
    await big.close()


async def test_a_student_without_tokens_is_refused(model, server, monkeypatch):
    monkeypatch.setattr("art_core.model.teacher.tokens_of", lambda _: None)
    with pytest.raises(ConfigError, match="'student' answers without token ids"):
        await art.teacher(model, "big", base_url=server.url)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"of": "big"}, "teacher 'big' has no endpoint. Give base_url"),
        ({"of": "big", "base_url": "http://x/v1", "step": 1}, "has no steps"),
        ({"base_url": "http://x/v1"}, "are those of a teacher that is given by its name"),
        ({}, "can't teach itself what it does already"),
    ],
)
async def test_a_teacher_that_is_not_stated_whole_is_refused(model, options, reason):
    with pytest.raises(ConfigError, match=reason):
        await art.teacher(model, **options)


async def test_cancelling_stops_the_requests(model, server):
    teacher = await art.teacher(model, "big", base_url=server.url)
    groups = await gathered(model, "yes", "no")
    scoring = asyncio.create_task(teacher.score(groups))
    await asyncio.sleep(0)
    scoring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await scoring
