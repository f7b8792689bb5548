"""The scenarios of a run are recorded, and a resume with other ones is refused."""

import attrs
import pytest

import art_core as art
from art_core.base.errors import ConfigError

SCENARIOS = [{"id": "a", "question": "1 + 1"}, {"id": "b", "question": "2 + 2"}, "what is 3 + 3?"]


@attrs.frozen
class Task:
    question: str


class Foreign:
    def model_dump(self, mode):
        return {"question": "4 + 4"}


@pytest.fixture
def opened(tmp_path):
    """Return a function that opens the run as a new process does."""

    def model(**options):
        return art.Model(name="m", project="p", base_path=tmp_path, sinks=[], **options)

    return model


async def trained(model, step=3):
    await model.log([art.Trajectory(reward=1.0)], split="train", step=step)
    await model.close()


async def test_equal_scenarios_go_on(opened):
    first = opened()
    first.check_scenarios(SCENARIOS)
    await trained(first)
    opened().check_scenarios(iter(SCENARIOS))


@pytest.mark.parametrize(
    ("scenarios", "said"),
    [
        (
            [*SCENARIOS, "another"],
            r"had 3 scenarios and has 4: 0 are gone, 1 are new, .* at scenario 4",
        ),
        (SCENARIOS[:2], "had 3 scenarios and has 2: 1 are gone"),
        (
            [SCENARIOS[0], {"id": "b", "question": "2 * 2"}, SCENARIOS[2]],
            "1 are gone, 1 are new, and the first difference is at scenario 2",
        ),
        (SCENARIOS[::-1], "the scenarios are the same in another order"),
    ],
)
async def test_changed_scenarios_are_refused_until_they_are_accepted(
    opened, scenarios, said, caplog
):
    first = opened()
    first.check_scenarios(SCENARIOS)
    await trained(first)
    second = opened()
    with pytest.raises(ConfigError, match=f"p/m was trained up to step 3 on other.*{said}"):
        second.check_scenarios(scenarios)
    with pytest.raises(ConfigError, match="accept_changes=True"):
        second.check_scenarios(scenarios)  # a refusal records nothing
    second.check_scenarios(scenarios, accept_changes=True)
    assert "trained up to step 3 on other scenarios" in caplog.text
    second.check_scenarios(scenarios)


async def test_before_the_first_step_and_without_a_record_nothing_is_compared(opened):
    first = opened()
    first.check_scenarios(SCENARIOS)
    first.check_scenarios(SCENARIOS[:1])
    (first.run_dir / "scenarios.json").unlink()
    await trained(first)
    second = opened()
    second.check_scenarios(SCENARIOS)
    with pytest.raises(ConfigError, match="had 3 scenarios and has 1"):
        second.check_scenarios(SCENARIOS[:1])


async def test_scenarios_are_compared_by_their_values(opened):
    first = opened()
    first.check_scenarios([Task("1 + 1"), Foreign(), {"b": 1, "a": 2}])
    await trained(first)
    opened().check_scenarios([Task("1 + 1"), Foreign(), {"a": 2, "b": 1}])
    with pytest.raises(ConfigError, match="compared as JSON, and <object"):
        opened().check_scenarios([object()])
