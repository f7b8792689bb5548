import re

import pytest

import art_core as art
from art_argus.client import ArgusClient, pause_s
from art_argus.events import Job, point
from art_core.metrics.taxonomy import builtin_taxonomy

IS_COUNT = builtin_taxonomy().is_count


@pytest.fixture
def client(argus, token):
    made = ArgusClient.to(argus.url, token)
    yield made
    made.close()


@pytest.fixture
def events(run, make_row):
    job = Job.of(run)
    return [point(job, make_row(seq, {"reward/mean": seq / 8}), IS_COUNT) for seq in range(1, 251)]


def test_events_go_in_posts_of_a_hundred(client, argus, events):
    assert client.send(events) == []
    assert argus.posts == [100, 100, 50]
    assert list(argus.events.values()) == events


def test_what_is_sent_twice_is_kept_once(client, argus, events):
    client.send(events)
    client.send(events)
    assert argus.deduplicated == len(argus.events) == 250


@pytest.mark.parametrize("bad", [{0}, {57}, {99}, {3, 4, 80}])
def test_a_bad_envelope_is_found_and_the_others_arrive(client, argus, events, bad):
    for at in bad:
        events[at] = events[at] | {"unknown_key": 1}
    refused = client.send(events[:100])
    assert [r.event for r in refused] == [events[at] for at in sorted(bad)]
    assert all("unknown" in r.reason for r in refused)
    assert len(argus.events) == 100 - len(bad)


def test_a_rejected_event_is_named_with_the_servers_reason(client, argus, events):
    events[1]["data"]["epoch"] = "two"
    (refused,) = client.send(events[:3])
    assert refused.event is events[1]
    assert "valid integer" in refused.reason
    assert len(argus.events) == 2


def test_an_event_of_another_schema_is_rejected_and_named(client, argus, events):
    events[0]["schema_version"] = "1.0"
    (refused,) = client.send(events[:2])
    assert refused.reason == "Unsupported schema_version"


def test_an_event_that_the_server_stumbled_over_gets_a_second_chance(client, argus, events):
    argus.stumble_on = {events[1]["event_id"]}
    assert client.send(events[:3]) == []
    assert argus.posts == [3, 1]
    assert len(argus.events) == 3


def test_too_many_requests_are_followed_by_the_pause_that_the_server_asks_for(
    client, argus, events
):
    pauses = []
    client.sleep = pauses.append
    argus.answers = [(429, {"Retry-After": "7"}, ""), (429, {}, "")]
    assert client.send(events[:1]) == []
    assert pauses == [7.0, 2.0]
    assert len(argus.events) == 1


def test_a_server_that_never_has_time_is_an_error(client, argus, events):
    client.sleep = lambda seconds: None
    argus.answers = [(429, {"Retry-After": "0"}, "")] * 5
    with pytest.raises(art.SinkError, match="asked 5 times"):
        client.send(events[:1])


@pytest.mark.parametrize(
    ("asked", "pause"), [("3", 3.0), ("999", 60.0), ("-1", 0.0), (None, 2.0), ("tomorrow", 2.0)]
)
def test_a_pause_is_a_minute_at_most(asked, pause):
    assert pause_s(asked) == pause


@pytest.mark.parametrize(("wrong", "status"), [("eyJh.eyJz.c2ln", 403), (None, 401)])
def test_a_token_that_is_no_api_token_is_an_error_that_says_so(argus, events, wrong, status):
    client = ArgusClient.to(argus.url, wrong)
    with pytest.raises(art.SinkError, match=rf"refuses the token \({status}\).*em_live_"):
        client.send(events[:1])
    client.close()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((503, {}, "warming up"), "answers 503: 'warming up'"),
        ((415, {}, "old"), "answers 415"),
        ((200, {}, "<html>login</html>"), "not an answer of Argus"),
        ((200, {}, '{"results": [{}]}'), "not an answer of Argus"),
        ((302, {"Location": "/login"}, ""), r"302.*Is ARGUS_URL right\?"),
    ],
)
def test_any_other_answer_is_an_error_to_be_tried_again(client, argus, events, answer, message):
    argus.answers = [answer]
    with pytest.raises(art.SinkError, match=message):
        client.send(events[:1])
    assert client.send(events[:1]) == []


def test_a_server_that_is_not_there_is_an_error_that_names_it(events):
    client = ArgusClient.to("http://127.0.0.1:9", "em_live_x")
    with pytest.raises(
        art.SinkError, match=re.escape("no answer from Argus at http://127.0.0.1:9")
    ):
        client.send(events[:1])
    client.close()


def test_requests_wait_ten_seconds_at_least_and_the_token_is_not_printed(client, token):
    assert min(client.http.timeout.as_dict().values()) >= 10.0
    assert token not in repr(client)


@pytest.mark.parametrize(
    ("told", "stops"),
    [
        ({"requested": True}, True),
        ({"stop_requested": True}, True),
        ({"requested": False}, False),
        ({}, False),
    ],
)
def test_the_stop_button_is_read_in_both_spellings(client, argus, told, stops):
    argus.stop = told
    assert client.stop_requested("demo-agent") is stops
    assert argus.asked == ["/api/batches/demo-agent/stop-requested"]
