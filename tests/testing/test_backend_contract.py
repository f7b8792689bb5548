"""The contract of backends: what its author has to state, and how answers are compared."""

import math
import sys
from pathlib import Path

import pytest

from art_core.testing.backend import BackendContract, LearningContract
from art_core.testing.backend.base import Answer, difference
from art_core.testing.echo import EchoBackend

sys.path.append(str(Path(__file__).parent))
from mutants.runner import run_text

ONE = (Answer("yes", (1, 2), (-0.5, -0.25)),)


@pytest.mark.parametrize(
    ("other", "found"),
    [
        (Answer("yes", (1, 2), (-0.505, -0.25)), None),
        (Answer("yes", (1, 2), (-0.52, -0.25)), "token 0 was -0.500000 and is -0.520000"),
        (Answer("yes", (1, 2), (-0.5, math.nan)), "token 1 was -0.250000 and is nan"),
        (Answer("no", (1, 2), (-0.5, -0.25)), "the greedy answer was 'yes' and is 'no'"),
        (Answer("yes", (1, 3), (-0.5, -0.25)), "the greedy answer was 'yes'"),
    ],
)
def test_answers_differ_by_text_tokens_or_log_probs(other, found):
    said = difference(ONE, (other,), tolerance=0.01)
    assert (said is None) if found is None else (found in said)


FAKE = """
    import pytest
    from art_core.base.errors import ConfigError
    from art_core.testing.backend import BackendContract
    from art_core.testing.echo import EchoBackend

    class SameAnswers(EchoBackend):
        def logprob_of(self, name):
            return -0.5

    class Lacking(EchoBackend):
        def __getattribute__(self, name):
            if name == type(self).lacks:
                raise AttributeError(name)
            return super().__getattribute__(name)

    class Strict(EchoBackend):
        async def register(self, model):
            endpoint = await super().register(model)
            handler = self._server._server.RequestHandlerClass
            answer = handler.do_POST

            def answers(self):
                if self.path == "/v1/completions":
                    return self._refuse(404, "no such path")
                return answer(self)

            handler.do_POST = answers
            return endpoint

        async def train(self, model, groups, **options):
            if "weight_decay" in options:
                raise ConfigError("this backend has no weight_decay")
            return await super().train(model, groups, **options)

    class TestIt(BackendContract):
        settle_s = 0.0
        {setting}
        @pytest.fixture
        def make_backend(self):
            return {backend}
"""


@pytest.fixture
def run(tmp_path, capsys):
    """Run the contract of a backend; return pytest's code, the outcomes and the output."""

    def run(backend, setting="", chosen="test"):
        text = FAKE.format(backend=backend, setting=setting)
        code, outcomes = run_text(text, tmp_path, "-k", chosen)
        return code, outcomes, capsys.readouterr().out

    return run


def test_a_backend_whose_weights_cannot_be_seen_fails(run):
    code, outcomes, _ = run("SameAnswers", chosen="training_changes")
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "state weights_cannot_be_seen = True in the class" in outcomes[0]


def test_weights_that_are_stated_to_be_unseen_are_reported(run):
    code, outcomes, out = run("SameAnswers", "weights_cannot_be_seen = True")
    assert code == pytest.ExitCode.OK
    assert outcomes.count("skipped") == 7
    assert "TestIt: weights_cannot_be_seen = True: no test saw which weights answered" in out


def test_a_backend_may_refuse_to_score_texts_and_options_of_the_optimizer(run):
    code, outcomes, _ = run("Strict", chosen="scored or option")
    assert code == pytest.ExitCode.OK
    assert outcomes.count("skipped") == 1


def test_an_endpoint_without_log_probs_is_compared_by_its_texts(run):
    texts = "EchoBackend(reply=lambda messages, step: f'step {step}')"
    code, outcomes, out = run(f"lambda: {texts}", "cannot_give_logprobs = True")
    assert code == pytest.ExitCode.OK
    assert outcomes.count("skipped") == 4
    assert "TestIt: cannot_give_logprobs = True: token ids and log-probs were not compared" in out
    assert "TestIt: a step on equal rewards changes the weights: " in out


def test_an_endpoint_without_log_probs_fails_when_nothing_is_stated(run):
    hides = "type('Hides', (EchoBackend,), {'logprob_of': lambda self, name: None})"
    code, outcomes, _ = run(hides, chosen="training_changes")
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "state cannot_give_logprobs = True in the class" in outcomes[0]


@pytest.mark.parametrize(("lacking", "skipped"), [("train_sft", 5), ("check_sft", 1)])
def test_a_backend_without_supervised_fine_tuning_is_not_tested_for_it(run, lacking, skipped):
    code, outcomes, _ = run(f"type('Lacks', (Lacking,), {{'lacks': '{lacking}'}})", chosen="sft")
    assert code == pytest.ExitCode.OK, outcomes
    assert outcomes.count("skipped") == skipped


async def test_a_contract_names_what_its_author_has_to_give():
    given = BackendContract.make_backend
    with pytest.raises(AssertionError, match="give the fixture make_backend"):
        getattr(given, "__wrapped__", given)(BackendContract())
    with pytest.raises(NotImplementedError, match="reward"):
        LearningContract().reward(None)
    await EchoBackend().close()
