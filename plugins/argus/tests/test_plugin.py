import pytest

import art_core as art
from art_argus import argus_sink, plugin


def test_the_sink_is_found_by_name():
    assert art.Plugins.discover().sink("argus").name == "argus"


def test_a_model_gets_the_sink_unasked_only_where_a_server_is_set(monkeypatch):
    monkeypatch.delenv("ARGUS_URL", raising=False)
    assert [spec.default for spec in plugin.art_sinks()] == [False]
    monkeypatch.setenv("ARGUS_URL", "http://argus.example.com")
    assert [spec.default for spec in plugin.art_sinks()] == [True]


def test_without_a_server_it_says_what_to_set(monkeypatch):
    monkeypatch.delenv("ARGUS_URL", raising=False)
    with pytest.raises(art.ConfigError, match="has no server.*ARGUS_URL and ARGUS_TOKEN"):
        argus_sink(token="em_live_x").create()


def test_a_server_that_is_no_url_is_told_before_anything_is_sent():
    with pytest.raises(art.ConfigError, match=r"server 'argus.example.com', which is not a URL"):
        argus_sink("argus.example.com").create()


def test_server_and_token_come_from_the_environment_unless_given(monkeypatch):
    monkeypatch.setenv("ARGUS_URL", "http://one.example.com/")
    monkeypatch.setenv("ARGUS_TOKEN", "em_live_env")
    named, given = (
        argus_sink().create(),
        argus_sink("http://two.example.com", "em_live_own").create(),
    )
    assert (named.client.url, given.client.url) == (
        "http://one.example.com",
        "http://two.example.com",
    )
    tokens = [sink.client.http.headers["Authorization"] for sink in (named, given)]
    assert tokens == ["Bearer em_live_env", "Bearer em_live_own"]
    named.client.close()
    given.client.close()


@pytest.mark.parametrize("seconds", [0, -1, 301])
def test_a_silence_that_argus_would_take_for_a_stall_is_an_error(seconds):
    with pytest.raises(art.ConfigError, match="15 minutes"):
        argus_sink("http://x.example.com", heartbeat_s=seconds)


def test_a_sink_names_its_options_without_the_token_and_is_made_again_from_them():
    spec = argus_sink("https://argus.example.com", "em_live_x", task="mazes", heartbeat_s=60.0)
    options = {"url": "https://argus.example.com", "task": "mazes", "heartbeat_s": 60.0}
    assert spec.options == options
    assert spec.factory(**spec.options).options == options
    assert argus_sink(token="em_live_x").options == {}
