"""Losses and advantages of your own in the stored options of a step."""

from functools import partial

import attrs
import pytest

import art_core as art
from art_core.base.errors import ConfigError
from art_core.rl.losses import loss_preset, spec_of_path
from art_core.rl.stored_options import check_restored, import_path, stored_options


def gentle(tokens):
    return tokens


def by_length(trajectories):
    return [len(t.messages_and_choices) for t in trajectories]


LOSS = art.LossSpec(name="gentle", create=lambda: gentle)
ADVANTAGES = art.AdvantageSpec(name="by_length", create=lambda: by_length)


def test_a_spec_of_a_module_is_stored_by_its_path_and_made_again(tmp_path, monkeypatch):
    (tmp_path / "losses_of_mine.py").write_text(
        "import art_core as art\n\n\ndef mild(tokens):\n    return tokens\n\n\n"
        "SPEC = art.LossSpec(name='mild', create=lambda: mild)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import losses_of_mine

    given = {"loss_fn": losses_of_mine.SPEC, "learning_rate": 1e-5}
    stored = stored_options(given, {}, {})
    assert stored == {"loss_fn": "losses_of_mine:SPEC", "learning_rate": 1e-5}
    assert loss_preset(stored["loss_fn"]).spec.create() is losses_of_mine.mild


def test_a_spec_that_a_plugin_offers_is_stored_by_its_name():
    again = attrs.evolve(LOSS)
    assert stored_options({"loss_fn": again}, {"gentle": LOSS}, {}) == {"loss_fn": "gentle"}
    stored = stored_options({"advantage_fn": ADVANTAGES}, {}, {"by_length": ADVANTAGES})
    assert stored == {"advantage_fn": "by_length"}


def test_a_spec_of_a_path_is_stored_by_that_path():
    spec = spec_of_path("losses_of_mine:mild")
    assert stored_options({"loss_fn": spec}, {}, {}) == {"loss_fn": "losses_of_mine:mild"}


def test_a_spec_of_no_module_stays_an_object(monkeypatch):
    here = art.LossSpec(name="here", create=lambda: gentle)
    assert stored_options({"loss_fn": here}, {}, {}) == {"loss_fn": here}
    assert import_path(art.LossSpec(name="part", create=partial(print))) is None

    def create():
        return gentle

    monkeypatch.setattr(create, "__module__", "__main__")
    assert import_path(art.LossSpec(name="of a script", create=create)) is None


@pytest.mark.parametrize("spec", [LOSS, ADVANTAGES, loss_preset("cispo")])
def test_the_text_of_an_object_is_refused_with_what_to_give(spec):
    with pytest.raises(ConfigError, match=f"step 3 was trained with loss_fn=.*{spec.name}.*--set"):
        check_restored({"learning_rate": 1e-5, "loss_fn": repr(spec)}, "step 3")
    check_restored({"loss_fn": "gspo"}, "step 3")
