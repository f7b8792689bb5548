"""Bills worked out by hand, each from the provider's payload to the dollars in a row.

`golden.json` holds them: `hand` are pairs of tokens and US dollars per million. The table in
`docs/costs.md` is made of the same payloads.
"""

import json
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import pytest

import art_core as art
from art_core.base.errors import PricingError
from art_core.hooks.host import Core

CASES = json.loads((Path(__file__).parent / "golden.json").read_text(), parse_float=Decimal)
PRICED = [case for case in CASES if case["usd"] is not None]
UNKNOWN = [case for case in CASES if case["usd"] is None]


def name(case):
    return f"{case['model']}: {case['name']}"


def as_object(value):
    """A response as a provider's client returns it: attributes all the way down."""
    if isinstance(value, dict):
        return SimpleNamespace(**{key: as_object(item) for key, item in value.items()})
    return [as_object(item) for item in value] if isinstance(value, list) else value


@pytest.fixture
def model(tmp_path):
    plugins = art.Plugins()
    plugins.register(Core(), "core")
    return art.Model(name="m", project="p", base_path=tmp_path, sinks=[], plugins=plugins)


async def paid(model, case, form):
    """Dollars in the row of a run that made the call once."""
    tracked = art.track_api_cost(
        source="judge", provider=case["provider"], model_name=case["model"]
    )

    @tracked
    async def call():
        return form(case["response"])

    @tracked
    def stream():
        yield from form(case["chunks"])

    with model.metrics_builder("train").activate_context():
        if "chunks" in case:
            list(stream())
        else:
            await call()
    row = await model.log(split="train", step=1)
    await model.close()
    return row.metrics.get("costs/train/judge")


@pytest.mark.parametrize("case", PRICED, ids=name)
def test_the_sum_is_what_the_arithmetic_beside_it_gives(case):
    assert sum(tokens * Decimal(rate) for tokens, rate in case["hand"]) / 1_000_000 == case["usd"]


@pytest.mark.parametrize("form", [lambda said: said, as_object], ids=["dict", "object"])
@pytest.mark.parametrize("case", PRICED, ids=name)
async def test_a_row_has_the_dollars_to_the_last_digit(model, case, form):
    assert await paid(model, case, form) == pytest.approx(float(case["usd"]), abs=1e-12)


@pytest.mark.parametrize("case", UNKNOWN, ids=name)
async def test_a_model_that_nobody_knows_raises_before_it_costs_anything(model, case):
    with pytest.raises(PricingError, match=case["model"]):
        await paid(model, case, lambda said: said)


@pytest.mark.parametrize("kind", ["chat.completion", "response"])
async def test_responses_of_the_openai_library_are_priced_as_they_are(model, kind):
    chat = pytest.importorskip("openai.types.chat").ChatCompletion
    response = pytest.importorskip("openai.types.responses").Response
    case = next(c for c in PRICED if c.get("response", {}).get("object") == kind)
    built = {"chat.completion": chat, "response": response}[kind].construct(**case["response"])
    assert type(built.usage).__name__ in ("CompletionUsage", "ResponseUsage")
    assert await paid(model, case, lambda said: built) == pytest.approx(0.126, abs=1e-12)


@pytest.mark.parametrize("case", CASES, ids=name)
def test_the_docs_tell_each_bill(case):
    page = (Path(__file__).parents[2] / "docs" / "costs.md").read_text()
    usd = "no price" if case["usd"] is None else f"{case['usd']:.4f} = "
    assert f"\n| {case['model']} | {case['name']} | {usd}" in page
