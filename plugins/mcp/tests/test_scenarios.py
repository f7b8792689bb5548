"""Scenarios that a model writes."""

import json

import pytest

import art_core as art
from art_core.testing.scripts import Actor, Stage, in_turn
from art_mcp import generate_scenarios
from art_mcp.scenarios import read_scenarios


def item(task="What does one apple cost?", difficulty=1, tools=("shop_look_up",)):
    return {"task": task, "difficulty": difficulty, "tools": list(tools)}


def writer(*answers):
    return Actor(Stage(in_turn([a if isinstance(a, str) else json.dumps(a) for a in answers])))


async def test_scenarios_have_a_task_a_difficulty_and_the_tools_they_need(small):
    pears = item("Are two pears cheaper than four apples?", 3)
    answer = "Here they are:\n```json\n" + json.dumps([item(), pears]) + "\n```"
    first, second = await generate_scenarios(small(), 2, model=writer(answer))
    assert first == {**item(), "id": first["id"]}
    assert (second["difficulty"], len({first["id"], second["id"]})) == (3, 2)


async def test_what_does_not_fit_is_left_out_and_the_model_is_asked_again(small):
    stage = Stage(in_turn([json.dumps([item(), item()]), json.dumps([item("Is a pear dear?")])]))
    found = await generate_scenarios(
        small(), 2, model=Actor(stage), instructions="Ask in one sentence."
    )
    assert [scenario["task"] for scenario in found] == [item()["task"], "Is a pear dear?"]
    first, second = stage.prompts
    assert "Write 2 different tasks" in first and "Ask in one sentence." in first
    assert '"name": "shop_look_up"' in first
    assert "Write 1 different tasks" in second and "- What does one apple cost?" in second


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("I can't.", "no JSON list"),
        ([3], "no object"),
        ([item(task="short")], "no task of at least 10 characters"),
        ([item(task=None)], "no task of at least 10 characters"),
        ([item(difficulty=6)], "no difficulty from 1 to 5"),
        ([item(difficulty=True)], "no difficulty from 1 to 5"),
        ([item(difficulty="2")], "no difficulty from 1 to 5"),
        ([item(tools=())], "no list of tools"),
        ([item(tools=["pay"])], "no such tool 'pay'"),
        ([item(tools=[["pay"]])], r"no such tool \['pay'\]"),
        ([item(), item()], "a task that another scenario has"),
        ('{"a": 1}', "no task of at least 10 characters"),
    ],
)
async def test_a_model_that_writes_no_valid_scenarios_is_an_error(small, answer, problem):
    with pytest.raises(art.RolloutError, match=rf"of 2 scenarios in 2 requests.*{problem}"):
        await generate_scenarios(small(), 2, model=writer(answer), max_requests=2)


async def test_a_server_without_tools_is_an_error(small):
    with pytest.raises(art.ConfigError, match="offers no tools"):
        await generate_scenarios(small("no_tools"), 1, model=writer("[]"))


async def test_the_number_is_at_least_one(small):
    with pytest.raises(art.ConfigError, match="at least 1, got 0"):
        await generate_scenarios(small(), 0, model=writer("[]"))


def test_a_list_of_levels_that_cannot_be_compared_is_no_difficulty():
    scenarios, problems = read_scenarios(json.dumps([item(difficulty=[1])]), {"shop_look_up"})
    assert scenarios == []
    assert problems[0].startswith("no difficulty")
