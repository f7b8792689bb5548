"""Chat models inside wrapped rollouts, over an echo backend: recorded, apart, with all options."""

import asyncio

import pytest
from langchain.agents import create_agent
from langchain_core.language_models import FakeListChatModel
from langgraph.graph import END, START, MessagesState, StateGraph

import art_core as art
import art_langgraph.rollout
from art_core.testing.echo import EchoBackend
from art_langgraph import init_chat_model, wrap_rollout

# LangChain keeps one client for an address, which belongs to the first event loop.
pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture
async def opened(tmp_path):
    backend = EchoBackend()
    async with art.TrainableModel(
        name="agent", project="p", base_model="some/base", base_path=tmp_path, sinks=[]
    ) as model:
        await model.register(backend)
        yield model
    await backend.close()


async def asked(text, **options):
    return (await init_chat_model(**options).ainvoke(text)).text


async def test_attempts_that_run_at_once_have_their_own_conversations(opened):
    async def rollout(word):
        chat_model = init_chat_model()
        first = await chat_model.ainvoke(word)
        await asyncio.sleep(0.01)
        return art.Trajectory(reward=float(first.text == word), metrics={"words": 1})

    recorded = wrap_rollout(opened, rollout)
    words = [f"word {number}" for number in range(16)]
    attempts = await asyncio.gather(*map(recorded, words))
    for word, attempt in zip(words, attempts, strict=True):
        assert [message["content"] for message in attempt.messages()] == [word, word]
        assert (attempt.reward, attempt.metrics, attempt.additional_histories) == (
            1.0, {"words": 1}, [],
        )  # fmt: skip
    result = await opened.train([art.TrajectoryGroup(attempts[:1]), art.TrajectoryGroup(attempts)])
    assert result.step == 1


async def test_nodes_with_prompts_of_their_own_are_histories_of_their_own(opened):
    async def rollout():
        chat_model = init_chat_model()
        graph = StateGraph(MessagesState)

        async def plan(state):
            return {"messages": [await chat_model.ainvoke([("system", "Plan."), ("user", "a")])]}

        def write(state):  # LangGraph runs it in a thread
            return {"messages": [chat_model.invoke([("system", "Write."), ("user", "b")])]}

        graph.add_node("plan", plan)
        graph.add_node("write", write)
        graph.add_edge(START, "plan")
        graph.add_edge("plan", "write")
        graph.add_edge("write", END)
        await graph.compile().ainvoke({"messages": []})
        return art.Trajectory(reward=1.0)

    attempt = await wrap_rollout(opened, rollout)()
    found = [[message["content"] for message in h.messages()] for h in attempt.histories()]
    assert found == [["Plan.", "a", "a"], ["Write.", "b", "b"]]


@pytest.mark.parametrize("name", [None, "agent", "agent@0", "some/base"])
async def test_the_names_of_the_trained_model_mean_it(opened, name):
    async def rollout():
        return art.Trajectory(reward=float(await asked("hi", model=name) == "hi"))

    attempt = await wrap_rollout(opened, rollout)()
    assert (attempt.reward, len(attempt.messages())) == (1.0, 2)


async def test_all_options_reach_the_chat_model(opened):
    async def rollout():
        chat_model = init_chat_model(
            "agent", temperature=0.3, max_tokens=7, use_responses_api=False, timeout=9, seed=4
        )
        assert (chat_model.temperature, chat_model.max_tokens, chat_model.seed) == (0.3, 7, 4)
        assert (chat_model.request_timeout, chat_model.use_responses_api) == (9, False)
        later = init_chat_model(configurable_fields=("temperature",), config_prefix="chat")
        answer = await later.ainvoke("hello", {"configurable": {"chat_temperature": 0.5}})
        return art.Trajectory(reward=float(answer.text == "hello"))

    assert (await wrap_rollout(opened, rollout)()).reward == 1.0


async def test_another_model_is_its_own_and_is_not_recorded(opened, monkeypatch):
    made = []

    def of_langchain(model, **options):
        made.append((model, options))
        return FakeListChatModel(responses=["fine"])

    monkeypatch.setattr("langchain.chat_models.init_chat_model", of_langchain)

    async def rollout():
        verdict = await asked("Is it good?", model="judge", model_provider="openai", top_p=0.5)
        return art.Trajectory(
            reward=1.0, messages_and_choices=[{"role": "user", "content": verdict}]
        )

    attempt = await wrap_rollout(opened, rollout)()
    assert attempt.messages() == [{"role": "user", "content": "fine"}]
    assert made == [("judge", {"model_provider": "openai", "top_p": 0.5})]
    with pytest.raises(art.ConfigError, match="inside a rollout only"):
        init_chat_model()
    await asked("hi", model="agent")  # outside, a name is LangChain's
    assert made[-1][0] == "agent"


async def test_anthropics_form_has_the_address_without_its_version(opened):
    pytest.importorskip("langchain_anthropic")

    async def rollout():
        chat_model = init_chat_model(model_provider="anthropic", max_tokens=7)
        assert not chat_model.anthropic_api_url.endswith("/v1")
        answer = await chat_model.ainvoke("hi")
        with pytest.raises(art.ConfigError, match="through openai, anthropic; got 'groq'"):
            init_chat_model(model_provider="groq")
        return art.Trajectory(reward=float(answer.text == "hi"))

    attempt = await wrap_rollout(opened, rollout)()
    assert (attempt.reward, len(attempt.messages())) == (1.0, 2)


async def test_an_agent_whose_conversation_is_shortened_has_another_history(opened):
    async def rollout():
        agent = create_agent(init_chat_model(), tools=[])
        state = await agent.ainvoke({"messages": [("user", "a long story")]})
        state = await agent.ainvoke({"messages": [*state["messages"], ("user", "on")]})
        await agent.ainvoke({"messages": [("user", "so far: a story"), ("user", "on")]})
        return art.Trajectory(reward=1.0)

    attempt = await wrap_rollout(opened, rollout)()
    assert [len(history.messages()) for history in attempt.histories()] == [4, 3]


async def test_a_rollout_that_fails_leaves_nothing_behind(opened):
    async def fails():
        await asked("hi")
        raise ZeroDivisionError

    async def returns_a_number():
        return 1.0

    with pytest.raises(ZeroDivisionError):
        await wrap_rollout(opened, fails)()
    with pytest.raises(TypeError, match=r"returns an art\.Trajectory; got 1\.0"):
        await wrap_rollout(opened, returns_a_number)()
    assert art_langgraph.rollout._trained.get() is None
