import httpx2 as httpx
import openai
import pytest

import art_core as art
from art_core.base.errors import BackendError
from art_core.rl.sequences import merge_turns, turns_of
from art_core.testing.backend import BackendContract
from art_core.testing.echo import EchoBackend, EchoServer, _Listener, echo_spec


class TestEcho(BackendContract):
    @pytest.fixture
    def make_backend(self):
        return EchoBackend


@pytest.fixture
async def model(tmp_path):
    made = art.TrainableModel(
        name="agent",
        project="p",
        base_model="base",
        base_path=tmp_path,
        sinks=[],
        plugins=art.Plugins(),
    )
    backend = EchoBackend()
    await made.register(backend)
    yield made
    await made.close()
    await backend.close()


def ask(trained, *texts, **more):
    messages = [{"role": "user", "content": text} for text in texts]
    return trained.openai_client().chat.completions.create(
        **{"model": "agent", "messages": messages} | more
    )


async def test_the_answer_is_the_last_message_byte_by_byte(model):
    response = await ask(model, "first", "hé")
    (choice,) = response.choices
    assert (choice.message.content, choice.finish_reason) == ("hé", "stop")
    assert choice.token_ids == [ord("h"), 0xC3, 0xA9, ord("\n")]
    assert bytes(choice.prompt_token_ids) == "user:first\nuser:hé\nassistant:".encode()
    assert [entry.logprob for entry in choice.logprobs.content] == [-0.5] * 4
    assert (response.usage.prompt_tokens, response.usage.completion_tokens) == (30, 4)


async def test_an_answer_is_cut_at_the_token_limit(model):
    for limit in ("max_tokens", "max_completion_tokens"):
        (choice,) = (await ask(model, "hello", **{limit: 2})).choices
        assert (choice.message.content, choice.finish_reason) == ("he", "length")
        assert len(choice.token_ids) == 2


async def test_several_answers_may_be_asked_for(model):
    response = await ask(model, "hi", n=3)
    assert [choice.index for choice in response.choices] == [0, 1, 2]
    assert response.usage.completion_tokens == 9


async def test_tokens_and_logprobs_come_only_when_asked_for(model):
    request = {"extra_body": {"return_token_ids": False}, "logprobs": False}
    (choice,) = (await ask(model, "hi", **request)).choices
    assert choice.logprobs is None
    assert not hasattr(choice, "token_ids")


async def test_a_stream_is_one_chunk(model):
    chunks = [chunk async for chunk in await ask(model, "hi", stream=True)]
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["hi"]


async def test_turns_of_a_conversation_are_one_sequence(model):
    trajectory = art.Trajectory(messages_and_choices=[{"role": "user", "content": "one"}])
    for text in ("two", "three"):
        completion = await model.openai_client().chat.completions.create(
            model="agent", messages=trajectory.messages()
        )
        trajectory.messages_and_choices += [
            completion.choices[0],
            {"role": "user", "content": text},
        ]
    turns, missing = turns_of(trajectory.histories()[0])
    merged = merge_turns(turns)
    assert (len(turns), missing, merged.prefix_breaks) == (2, 0, 0)
    (sequence,) = merged.sequences
    expected = b"user:one\nassistant:one\nuser:two\nassistant:two\n"
    assert bytes(sequence.token_ids) == expected


async def test_the_reply_may_depend_on_the_step(tmp_path):
    made = art.TrainableModel(
        name="agent",
        project="p",
        base_model="base",
        base_path=tmp_path,
        sinks=[],
        plugins=art.Plugins(),
    )
    backend = EchoBackend(reply=lambda messages, step: f"step {step}", gpu_cost_per_hour_usd=3600.0)
    await made.register(backend)
    result = await made.train([art.TrajectoryGroup([art.Trajectory()])], save_checkpoint=False)
    assert (await ask(made, "which?")).choices[0].message.content == "step 1"
    assert (await ask(made, "which?", model="base")).choices[0].message.content == "step 0"
    assert made.run.history.last.metrics["costs/gpu"] == pytest.approx(
        result.metrics["time/step_trainer_s"]
    )
    assert result.checkpoint is None and await made.checkpoints() == []
    await made.close()
    await backend.close()


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "not a completion request"),
        (b"{}", 400, "KeyError('model')"),
        (b'{"model": "agent", "messages": ["hi"]}', 400, "TypeError"),
        (b'{"model": "agnt", "messages": []}', 404, "no model 'agnt'; served: agent, agent@0"),
        (b'{"model": "agent", "messages": [{"role": "user"}], "n": "x"}', 400, "n must be a count"),
    ],
)
async def test_a_bad_request_is_told_in_openais_form(model, body, status, message):
    async with httpx.AsyncClient() as client:
        url = f"{model.endpoint().base_url}/chat/completions"
        response = await client.post(url, content=body)
    assert response.status_code == status
    assert message in response.json()["error"]["message"]
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_another_path_is_not_found(model, method):
    async with httpx.AsyncClient() as client:
        response = await client.request(method, f"{model.endpoint().base_url}/nothing")
    assert response.status_code == 404


async def test_a_model_that_is_not_registered_is_told_what_to_do(model):
    with pytest.raises(BackendError, match="model 'agent' is not registered here"):
        await EchoBackend().step(model)


async def test_after_close_nobody_listens(model):
    await model.backend.close()
    with pytest.raises(openai.APIConnectionError):
        await model.openai_client().with_options(max_retries=0).models.list()


async def test_one_backend_holds_several_models(model, tmp_path):
    other = art.TrainableModel(
        name="other",
        project="p",
        base_model="base",
        base_path=tmp_path,
        sinks=[],
        plugins=art.Plugins(),
    )
    await other.register(model.backend)
    assert other.endpoint().base_url == model.endpoint().base_url
    assert (await ask(other, "hi", model="other")).choices[0].message.content == "hi"
    assert model.backend.names() == ["agent", "agent@0", "base", "other", "other@0"]
    await other.close()


class TwoSteps:
    """A server's names: the step is in the name."""

    def names(self):
        return ["m@0", "m@7"]

    def step_of(self, name):
        return int(name.partition("@")[2])


async def test_log_probs_of_a_server_without_weights_depend_on_the_step():
    server = EchoServer.start(TwoSteps(), lambda messages, step: "hi")
    async with httpx.AsyncClient() as client:
        for name, logprob in (("m@0", -0.5), ("m@7", -0.57)):
            body = {"model": name, "messages": [{"role": "user"}], "logprobs": True}
            answer = await client.post(f"{server.url}/chat/completions", json=body)
            entry = answer.json()["choices"][0]["logprobs"]["content"][0]
            assert entry["logprob"] == pytest.approx(logprob)
    server.close()


async def test_log_probs_show_weights_that_checkpoints_keep(model):
    async def logprob(trained, name):
        (choice,) = (await ask(trained, "hi", model=name)).choices
        return choice.logprobs.content[0].logprob

    async def rollout(reward):
        (choice,) = (await ask(model, "hi")).choices
        message = {"role": "user", "content": "hi"}
        return art.Trajectory(messages_and_choices=[message, choice], reward=reward)

    for rewards in ((0.0, 1.0), (1.0, 1.0)):
        group = art.TrajectoryGroup(rollout(reward) for reward in rewards)
        await model.train(await art.gather_trajectory_groups([group], pbar_desc=None))
    before = [await logprob(model, name) for name in ("agent@0", "agent@1", "agent@2")]
    assert before[0] == -0.5 > before[1] == before[2]
    await model.register(EchoBackend())
    again = [await logprob(model, name) for name in ("agent@0", "agent@1", "agent@2")]
    assert again == before
    await model.backend.close()


def test_the_spec_makes_the_backend():
    spec = echo_spec()
    assert (spec.name, spec.create) == ("echo", EchoBackend)


@pytest.mark.parametrize(
    ("error", "printed"), [(BrokenPipeError(), False), (ValueError("odd"), True)]
)
def test_a_client_that_goes_away_leaves_no_traceback(error, printed, capsys):
    with _Listener(("127.0.0.1", 0), None) as listener:
        try:
            raise error
        except type(error):
            listener.handle_error(None, "client")
    assert ("Traceback" in capsys.readouterr().err) == printed
