import functools
import json

import attrs
import numpy as np
import pytest

import art_core as art
from art_core.base.errors import PluginError
from art_core.sinks.sync import FILE, keep_options, made_again


@attrs.define
class Shelf:
    """A sink that keeps nothing."""

    place: object = None

    def open(self, run):
        pass

    def write(self, rows):
        pass

    def close(self, run):
        pass


def shelf(place="here", **options):
    """A factory that declares its options."""
    given = {} if place == "here" else {"place": place}
    return art.SinkSpec(
        name="shelf",
        create=lambda: Shelf(place),
        summary="",
        options=given | options,
        factory=shelf,
    )


def plain(place="here"):
    """A factory of a plugin that declares nothing."""
    return art.SinkSpec(name="shelf", create=lambda: Shelf(place), summary="")


def kept(tmp_path, *specs, offers=None):
    keep_options(tmp_path, specs, lambda: {"shelf": offers} if offers else {})
    return json.loads((tmp_path / FILE).read_text())


def test_a_sink_is_made_again_with_the_options_that_code_gave(tmp_path):
    assert kept(tmp_path, shelf("there")) == {"shelf": {"options": {"place": "there"}}}
    assert made_again(shelf(), tmp_path).create().place == "there"


def test_a_sink_of_another_attempt_stays_known(tmp_path):
    kept(tmp_path, shelf("there"))
    other = attrs.evolve(shelf(), name="other")
    assert kept(tmp_path, other).keys() == {"shelf", "other"}


def test_a_sink_of_new_rows_only_is_not_kept(tmp_path):
    keep_options(tmp_path, [attrs.evolve(shelf(), backlog=False)], dict)
    assert not (tmp_path / FILE).exists()


def test_a_file_that_is_not_json_is_replaced_by_the_trainer_and_refused_by_sync(tmp_path):
    (tmp_path / FILE).write_text("{torn")
    with pytest.raises(art.ConfigError, match="is not JSON"):
        made_again(shelf(), tmp_path)
    assert kept(tmp_path, shelf())["shelf"] == {"options": {}}


def test_without_options_the_installed_sink_is_used(tmp_path):
    offered = shelf()
    assert made_again(offered, tmp_path) is offered
    kept(tmp_path, shelf())
    assert made_again(offered, tmp_path) is offered


def test_secrets_are_not_kept(tmp_path):
    spec = attrs.evolve(shelf("there"), options={"place": "there", "api_token": "s3cret-value"})
    assert kept(tmp_path, spec)["shelf"] == {"options": {"place": "there"}}
    number = attrs.evolve(shelf(), options={"max_tokens": 5})
    assert kept(tmp_path, number)["shelf"] == {"options": {"max_tokens": 5}}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"url": "postgresql://me:pass@host/db"}, "url holds a password"),
        ({"place": object()}, "they are not JSON values"),
        (None, "its SinkSpec names no options"),
    ],
)
def test_options_that_can_not_be_kept_are_refused_with_the_reason(tmp_path, options, why):
    text = json.dumps(kept(tmp_path, attrs.evolve(shelf("there"), options=options)))
    assert "pass@" not in text
    with pytest.raises(art.ConfigError, match=why):
        made_again(shelf(), tmp_path)


def test_a_plugin_without_a_factory_is_refused(tmp_path):
    kept(tmp_path, shelf("there"))
    with pytest.raises(art.ConfigError, match=r"place='there'.*no factory"):
        made_again(plain(), tmp_path)


def test_a_factory_that_does_not_take_an_option_is_refused(tmp_path):
    kept(tmp_path, shelf("there"))
    other = attrs.evolve(shelf(), factory=lambda shelf_name="": shelf(shelf_name))
    with pytest.raises(art.ConfigError, match="does not take: got an unexpected keyword"):
        made_again(other, tmp_path)


def _first(sink):
    return sink


@pytest.mark.parametrize(
    ("given", "offered", "same"),
    [
        (plain().create, plain().create, True),
        (plain("there").create, plain().create, False),
        (plain(np.zeros(2)).create, plain(np.zeros(2)).create, False),
        (Shelf, Shelf, True),
        (Shelf, plain().create, False),
        (_first, plain().create, False),
        (functools.partial(Shelf, 1), functools.partial(Shelf, 1), True),
        (functools.partial(Shelf, 1), functools.partial(Shelf, 2), False),
        (functools.partial(Shelf, 1), functools.partial(_first, 1), False),
    ],
)
def test_a_sink_without_named_options_is_made_again_if_code_made_it_as_its_plugin_does(
    tmp_path, given, offered, same
):
    spec = art.SinkSpec(name="shelf", create=given, summary="")
    installed = attrs.evolve(spec, create=offered)
    known = kept(tmp_path, spec, offers=installed)["shelf"]["options"]
    assert (known == {}) is same


def test_plugins_in_conflict_do_not_stop_a_run(tmp_path):
    def offers():
        raise PluginError("two plugins offer it")

    keep_options(tmp_path, [plain()], offers)
    with pytest.raises(art.ConfigError, match="names no options"):
        made_again(plain(), tmp_path)


def test_a_sink_that_nobody_offers_is_unknown(tmp_path):
    assert kept(tmp_path, plain())["shelf"]["options"] is None
