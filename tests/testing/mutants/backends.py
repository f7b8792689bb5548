"""A right backend, and broken ones that differ from it by one fault each."""

from __future__ import annotations

import asyncio
import random
from typing import ClassVar

import attrs
import pytest
from mutants.runner import contracts_of

import art_core as art
from art_core.rl.sft import ExampleSize
from art_core.testing.backend import BackendContract, LearningContract
from art_core.testing.echo import EchoBackend


class RightBackend(EchoBackend):
    """The echo: its log-probs show its weights."""


class TestRight(BackendContract):
    backend: ClassVar = RightBackend

    @pytest.fixture
    def make_backend(self):
        return self.backend


class ListsNothing(EchoBackend):
    """The endpoint lists no models."""

    def names(self):
        return []


class AnswersAnyName(EchoBackend):
    """The endpoint answers for model names that do not exist."""

    def step_of(self, name):
        return super().step_of(name) or 0


class GivesNoTokens(EchoBackend):
    """Answers have no token ids."""

    async def register(self, model):
        endpoint = await super().register(model)
        handler = self._server._server.RequestHandlerClass
        handler._json = without(handler._json, "token_ids")
        return endpoint


class GivesNoLogProbs(EchoBackend):
    """Answers have no log-probs."""

    async def register(self, model):
        endpoint = await super().register(model)
        handler = self._server._server.RequestHandlerClass
        handler._json = without(handler._json, "logprobs")
        return endpoint


def without(send, field):
    """A sender of JSON that leaves a field out of the choices."""

    def sends(self, status, body):
        saved = [
            {k: v for k, v in choice.items() if k != field} for choice in body.get("choices", ())
        ]
        return send(self, status, {**body, "choices": saved} if saved else body)

    return sends


class DropsUsage(EchoBackend):
    """Responses have no usage."""

    async def register(self, model):
        endpoint = await super().register(model)
        handler = self._server._server.RequestHandlerClass
        send = handler._json
        handler._json = lambda self, status, body: send(
            self, status, {k: v for k, v in body.items() if k != "usage"}
        )
        return endpoint


class ScoresWithOtherWeights(EchoBackend):
    """Texts are scored by other weights than those that answer."""

    async def register(self, model):
        endpoint = await super().register(model)
        handler = self._server._server.RequestHandlerClass
        send = handler._json

        def sends(self, status, body):
            if body.get("object") == "text_completion":
                logprobs = body["choices"][0]["logprobs"]
                logprobs["token_logprobs"] = [-3.0] * len(logprobs["tokens"])
            return send(self, status, body)

        handler._json = sends
        return endpoint


class HidesTheStep(EchoBackend):
    """Answers do not name the step of their weights."""

    async def register(self, model):
        endpoint = await super().register(model)
        handler = self._server._server.RequestHandlerClass
        send = handler._json
        handler._json = lambda self, status, body: send(
            self, status, {k: v for k, v in body.items() if k != "policy_version"}
        )
        return endpoint


class GivesProbabilities(EchoBackend):
    """Log-probs are probabilities."""

    def logprob_of(self, name):
        return 0.5 - super().logprob_of(name) / 10


class GivesZeros(EchoBackend):
    """All log-probs are zero."""

    def logprob_of(self, name):
        return 0.0


class GivesNoise(EchoBackend):
    """Log-probs are random."""

    def logprob_of(self, name):
        return -random.random()


class SharesAdvantages(EchoBackend):
    """All tokens of a sequence have the mean of its turns' advantages."""

    async def train(self, model, groups, **options):
        if any(t.turn_rewards for group in groups for t in group):
            groups = []  # which add up to nothing
        return await super().train(model, groups, **options)


class StandsStill(EchoBackend):
    """The step does not rise."""

    async def step(self, model):
        return 0


class CountsTwice(EchoBackend):
    """Each training step raises the step by two."""

    async def train(self, model, groups, **options):
        await super().train(model, groups, **options)
        return await super().train(model, groups, **options)


class ReportsOldNames(EchoBackend):
    """Metrics have names outside the catalogue."""

    async def train(self, model, groups, **options):
        result = await super().train(model, groups, **options)
        return attrs.evolve(result, metrics={"train/reward": 1.0})


class ReportsNaN(EchoBackend):
    """A metric is not a number."""

    async def train(self, model, groups, **options):
        result = await super().train(model, groups, **options)
        return attrs.evolve(result, metrics={"loss/train": float("nan")})


class AcceptsUnknownOptions(EchoBackend):
    """Options that do not exist are ignored."""

    async def train(self, model, groups, **options):
        known = {field.name for field in attrs.fields(art.TrainConfig)}
        return await super().train(
            model, groups, **{k: v for k, v in options.items() if k in known}
        )


class IgnoresAnOption(EchoBackend):
    """An option that exists has no effect."""

    async def train(self, model, groups, **options):
        return await super().train(model, groups, **{**options, "save_checkpoint": True})


class IgnoresTheRate(EchoBackend):
    """The rate of the first step stays."""

    async def train(self, model, groups, *, learning_rate=1e-5, **options):
        del learning_rate
        return await super().train(model, groups, **options)


class RefusesTooLate(EchoBackend):
    """An option is refused when the step was trained."""

    async def train(self, model, groups, *, weight_decay=0.0, **options):
        result = await super().train(model, groups, **options)
        if weight_decay:
            raise art.ConfigError("weight_decay is not supported")
        return result


class AcceptsInvalidValues(EchoBackend):
    """Values of options are not checked."""

    async def train(self, model, groups, **options):
        saved = {k: v for k, v in options.items() if k not in ("learning_rate", "loss_fn")}
        return await super().train(model, groups, **saved)


class AcceptsNaNRewards(EchoBackend):
    """Trajectories whose reward is not a number are left out silently."""

    async def train(self, model, groups, **options):
        saved = [[t for t in group if t.reward == t.reward] for group in groups]
        return await super().train(model, [art.TrajectoryGroup(k) for k in saved], **options)


class IsFree(EchoBackend):
    """The time of devices is not charged."""

    async def train(self, model, groups, **options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(model), "charge", lambda *_: None)
            return await super().train(model, groups, **options)


class StopsWithoutSpread(EchoBackend):
    """Equal rewards are an error."""

    async def train(self, model, groups, **options):
        rewards = {t.reward for group in groups for t in group}
        if len(rewards) == 1:
            raise art.BackendError("nothing to train")
        return await super().train(model, groups, **options)


class DeletesKeptCheckpoints(EchoBackend):
    """A checkpoint that should be kept is deleted."""

    async def delete_checkpoints(self, model, keep):
        return await super().delete_checkpoints(model, ())


class DeletesNothing(EchoBackend):
    """Checkpoints are reported as deleted, and stay."""

    async def delete_checkpoints(self, model, keep):
        saved = self._weights(model).saved
        return [step for step in saved[:-1] if step not in keep]


class ServesTheBaseModel(EchoBackend):
    """The base model answers under the trained model's name."""

    def logprob_of(self, name):
        return super().logprob_of("base")


class ServesTheNewestOnly(EchoBackend):
    """The newest weights answer for every older step."""

    def logprob_of(self, name):
        return super().logprob_of(name.partition("@")[0])


class ForgetsItsWeights(EchoBackend):
    """A resumed run has the right step, and the base model's weights."""

    async def register(self, model):
        endpoint = await super().register(model)
        weights = self._weights(model)
        weights.values = dict.fromkeys(weights.values, 0.0)
        return endpoint


class ForgetsOlderSteps(EchoBackend):
    """A resumed run has the newest weights under the names of older steps."""

    async def register(self, model):
        endpoint = await super().register(model)
        weights = self._weights(model)
        newest = weights.values[weights.step]
        weights.values = {step: step and newest for step in weights.values}
        return endpoint


class ForgetsTheStep(EchoBackend):
    """A resumed run begins at step 0."""

    async def register(self, model):
        endpoint = await super().register(model)
        self._weights(model).step = 0
        return endpoint


class SavesNothing(EchoBackend):
    """No checkpoint is written."""

    async def train(self, model, groups, **options):
        return await super().train(model, groups, **{**options, "save_checkpoint": False})


class TrainsTheBaseModel(EchoBackend):
    """The first step after a resume trains the base model's weights."""

    resumed = False

    async def register(self, model):
        endpoint = await super().register(model)
        self.resumed = self._weights(model).step > 0
        return endpoint

    async def train(self, model, groups, **options):
        values, step = self._weights(model).values, self._weights(model).step
        newest = values[step]
        if self.resumed:
            values[step] = 0.0
        self.resumed = False
        result = await super().train(model, groups, **options)
        values[step] = newest
        return result


class LosesUnregisteredModels(EchoBackend):
    """A model that was unregistered comes back untrained."""

    gone = False

    async def unregister(self, model):
        self.gone = True
        await super().unregister(model)

    async def register(self, model):
        endpoint = await super().register(model)
        if self.gone:
            weights = self._weights(model)
            weights.values = dict.fromkeys(weights.values, 0.0)
        return endpoint


class RefusesASecondRegister(EchoBackend):
    """Registering a model again is an error."""

    async def register(self, model):
        if model.name in self._models:
            raise art.BackendError("this model is registered")
        return await super().register(model)


class HoldsOneModel(EchoBackend):
    """A second model takes the place of the first."""

    async def register(self, model):
        self._models.clear()
        return await super().register(model)


class MixesModels(EchoBackend):
    """The model that was trained last answers for all models."""

    newest = None

    async def train(self, model, groups, **options):
        self.newest = model.name
        return await super().train(model, groups, **options)

    def logprob_of(self, name):
        return super().logprob_of(name if "@" in name else self.newest or name)


class SharesSteps(EchoBackend):
    """Two models share the weights of a step."""

    def logprob_of(self, name):
        step = name.partition("@")[2]
        held = [n for n, w in self._models.items() if step and int(step) in w.values]
        return super().logprob_of(f"{held[-1]}@{step}" if held else name)


class TrainsInSpiteOfCancel(EchoBackend):
    """A cancelled step goes on later, after the next one."""

    cancelled = False

    async def train(self, model, groups, **options):
        try:
            await asyncio.sleep(0.03)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        result = await super().train(model, groups, **options)
        if self.cancelled:
            asyncio.get_running_loop().call_later(0.05, self.go_on, model)
        return result

    def go_on(self, model):
        weights = self._weights(model)
        weights.step += 1
        weights.values[weights.step] = 0.125


class KeepsHalfAStep(EchoBackend):
    """A cancelled step leaves half of its change in the weights."""

    async def train(self, model, groups, **options):
        try:
            await asyncio.sleep(0.03)
        except asyncio.CancelledError:
            weights = self._weights(model)
            weights.values[weights.step] += 0.125
            raise
        return await super().train(model, groups, **options)


class ClosesOnce(EchoBackend):
    """A second close raises."""

    async def close(self):
        if self._models and self._server is None:
            raise art.BackendError("closed")
        await super().close()


class ClosesOnlyWhenUsed(EchoBackend):
    """Closing raises before a model is registered."""

    async def close(self):
        if not self._models:
            raise art.BackendError("nothing to close")
        await super().close()


class TrainsNoConversation(EchoBackend):
    """Supervised fine-tuning leaves the weights as they were."""

    async def train_sft(self, model, batches, **options):
        return await super().train_sft(model, [], **options)


class TrainsConversationsInOneStep(EchoBackend):
    """Supervised fine-tuning does not advance the step."""

    async def train_sft(self, model, batches, **options):
        before = self._weights(model).step
        result = await super().train_sft(model, batches, **options)
        self._weights(model).step = before
        return attrs.evolve(result, step=before)


class HidesTheLoss(EchoBackend):
    """Steps of supervised fine-tuning have no loss."""

    async def train_sft(self, model, batches, **options):
        result = await super().train_sft(model, batches, **options)
        return attrs.evolve(
            result, metrics={k: v for k, v in result.metrics.items() if k != "loss/train"}
        )


class TrainsConversationsForFree(EchoBackend):
    """Supervised fine-tuning is not charged."""

    async def train_sft(self, model, batches, **options):
        charge, type(model).charge = type(model).charge, lambda self, time: None
        try:
            return await super().train_sft(model, batches, **options)
        finally:
            type(model).charge = charge


class StartsAgainAfterConversations(EchoBackend):
    """The first step on rewards after supervised fine-tuning is step 1 again."""

    after_sft = False

    async def train_sft(self, model, batches, **options):
        self.after_sft = True
        return await super().train_sft(model, batches, **options)

    async def train(self, model, groups, **options):
        if self.after_sft:
            self._weights(model).step = 0
        return await super().train(model, groups, **options)


class AcceptsOptionsOfRewards(EchoBackend):
    """Supervised fine-tuning accepts options that it does not have."""

    async def train_sft(self, model, batches, **options):
        known = {k: v for k, v in options.items() if k in ("learning_rate", "save_checkpoint")}
        return await super().train_sft(model, batches, **known)


class ChecksNoConversation(EchoBackend):
    """Conversations that can't be trained are found good."""

    async def check_sft(self, model, examples):
        return [ExampleSize(tokens=1, trained=1) for _ in examples]


@attrs.define(kw_only=True, eq=False, slots=False)
class Learner(EchoBackend):
    """Answers yes or no, by a probability that policy gradients change."""

    chance: ClassVar = 0.5

    def __attrs_post_init__(self):
        self.draw = random.Random(0)
        self.yes = {}
        self.reply = lambda messages, step: (
            "yes" if self.draw.random() < self.yes.get(step, self.chance) else "no"
        )

    def gradient(self, batch_or_groups):
        total = 0.0
        for group in batch_or_groups:
            mean = sum(group.rewards) / len(group.rewards)
            for attempt in group:
                answer = attempt.messages()[-1]["content"]
                total += (attempt.reward - mean) * (1 if answer == "yes" else -1)
        return total / sum(len(group.rewards) for group in batch_or_groups)

    async def train(self, model, groups, **options):
        result = await super().train(model, groups, **options)
        before = self.yes.get(result.step - 1, self.chance)
        self.yes[result.step] = min(0.98, max(0.02, before + self.gradient(groups) / 2))
        return result


class TestLearner(LearningContract):
    backend: ClassVar = Learner
    learning_steps: ClassVar = 4
    attempts_per_step: ClassVar = 16

    @pytest.fixture
    def make_backend(self):
        return self.backend

    def reward(self, choice):
        return float(choice.message.content == "yes")


class LearnsNothing(Learner):
    """Advantages do not reach the weights."""

    def gradient(self, groups):
        return 0.0


class LearnsTheOpposite(Learner):
    """The sign of the advantage is flipped."""

    def gradient(self, groups):
        return -super().gradient(groups)


class LearnsWhateverTheReward(Learner):
    """The weights move toward the same answer, whatever its reward."""

    def gradient(self, groups):
        return abs(super().gradient(groups))


TWO_MODELS = "test_two_models_keep_their_own_weights"
RESUME = "test_a_new_backend_has_the_weights_of_every_step"
CANCEL = "test_a_step_cancelled_in_the_middle_is_done_or_not_done"
TOKENS = "test_an_answer_carries_the_engines_tokens"
DELETE = "test_checkpoints_are_deleted_except_those_to_keep_and_the_newest"
LOGPROBS = "test_log_probs_are_finite_and_not_above_zero"
SFT = "test_sft_on_conversations_changes_the_weights_by_one_step_per_batch"
SFT_ROW = "test_sft_writes_a_row_of_canonical_metrics_with_its_cost_for_each_step"
FAULTS = {
    SharesAdvantages: "test_turns_of_a_conversation_have_advantages_of_their_own",
    ListsNothing: "test_a_registered_model_is_listed_by_its_endpoint",
    AnswersAnyName: "test_an_unknown_model_name_is_not_found",
    GivesNoTokens: TOKENS,
    GivesNoLogProbs: TOKENS,
    GivesProbabilities: LOGPROBS,
    GivesZeros: LOGPROBS,
    GivesNoise: "test_the_same_greedy_request_has_the_same_answer",
    HidesTheStep: "test_an_answer_names_the_step_of_its_weights",
    DropsUsage: "test_a_response_has_its_usage",
    StandsStill: "test_each_training_step_advances_the_step_by_one",
    CountsTwice: "test_each_training_step_advances_the_step_by_one",
    ReportsOldNames: "test_training_reports_canonical_metrics",
    ReportsNaN: "test_training_reports_canonical_metrics",
    AcceptsUnknownOptions: "test_an_unknown_option_is_refused_and_nothing_is_trained",
    AcceptsInvalidValues: "test_an_invalid_value_of_an_option_is_refused_and_nothing_is_trained",
    RefusesTooLate: "test_each_option_of_the_optimizer_is_used_or_refused",
    ScoresWithOtherWeights: "test_a_scored_text_has_the_log_probs_of_its_sampling",
    IgnoresTheRate: "test_a_schedule_gives_each_step_its_rate",
    IgnoresAnOption: "test_a_step_without_a_checkpoint_leaves_none",
    AcceptsNaNRewards: "test_rewards_that_are_no_numbers_are_refused_and_nothing_is_trained",
    IsFree: "test_what_training_used_is_charged",
    StopsWithoutSpread: "test_groups_without_spread_advance_the_step_too",
    DeletesKeptCheckpoints: DELETE,
    DeletesNothing: DELETE,
    ServesTheBaseModel: "test_training_changes_the_weights_that_answer",
    ServesTheNewestOnly: "test_older_steps_keep_their_weights",
    ForgetsItsWeights: RESUME,
    ForgetsOlderSteps: RESUME,
    ForgetsTheStep: "test_a_new_backend_goes_on_from_the_last_checkpoint",
    SavesNothing: "test_a_new_backend_goes_on_from_the_last_checkpoint",
    TrainsTheBaseModel: "test_a_new_backend_trains_the_weights_of_the_last_checkpoint",
    LosesUnregisteredModels: "test_a_model_that_was_unregistered_comes_back_with_its_weights",
    RefusesASecondRegister: "test_a_model_may_be_registered_twice",
    HoldsOneModel: "test_two_models_are_trained_and_served_at_once",
    MixesModels: TWO_MODELS,
    SharesSteps: TWO_MODELS,
    TrainsInSpiteOfCancel: CANCEL,
    KeepsHalfAStep: CANCEL,
    TrainsNoConversation: SFT,
    TrainsConversationsInOneStep: SFT,
    HidesTheLoss: SFT_ROW,
    TrainsConversationsForFree: SFT_ROW,
    StartsAgainAfterConversations: "test_training_on_rewards_goes_on_after_sft",
    AcceptsOptionsOfRewards: "test_sft_refuses_an_unknown_option_and_trains_nothing",
    ChecksNoConversation: ("test_sft_refuses_a_conversation_without_an_answer_and_trains_nothing"),
    ClosesOnce: "test_a_backend_may_be_closed_twice",
    ClosesOnlyWhenUsed: "test_a_backend_may_be_closed_unused",
    LearnsNothing: "test_reward_rises_with_training",
    LearnsTheOpposite: "test_reward_rises_with_training",
    LearnsWhateverTheReward: "test_reward_does_not_rise_when_rewards_are_inverted",
}
LEARNERS = {fault: test for fault, test in FAULTS.items() if issubclass(fault, Learner)}
globals().update(contracts_of(TestRight, FAULTS.keys() - LEARNERS.keys(), "backend"))
globals().update(contracts_of(TestLearner, LEARNERS, "backend"))
