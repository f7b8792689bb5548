"""A backend that is interrupted and closed."""

from __future__ import annotations

import asyncio

import pytest

from art_core.testing.backend.base import (
    BackendContractBase,
    MakeBackend,
    MakeGroups,
    MakeModel,
    registered,
    version,
)


class BackendLifecycle(BackendContractBase):
    """The tests of cancelling and closing."""

    @pytest.mark.parametrize("delay_s", [0.0, 0.02])
    async def test_a_step_cancelled_in_the_middle_is_done_or_not_done(
        self,
        make_backend: MakeBackend,
        make_model: MakeModel,
        make_groups: MakeGroups,
        delay_s: float,
    ) -> None:
        """The weights are those of a whole step, the next step follows it, and then nothing
        changes any more.
        """
        async with registered(make_backend, make_model) as (backend, model):
            base = await self.answers(model)
            groups = await make_groups(model, (0.0, 1.0))
            step = asyncio.create_task(model.train(groups, **self.train_options))
            await asyncio.sleep(delay_s)
            step.cancel()
            await asyncio.gather(step, return_exceptions=True)
            result = await self.trained(model, make_groups)
            assert result.step == await backend.step(model) == await version(model)
            assert result.step in (1, 2)
            seen = await self.answers(model)
            await asyncio.sleep(self.settle_s)
            assert await backend.step(model) == await version(model) == result.step
            if not self.weights_cannot_be_seen:
                self.assert_same(base, await self.answers(model, 0), "step 0 after a cancelled one")
                self.assert_same(seen, await self.answers(model), "the step after a cancelled one")

    async def test_a_backend_may_be_closed_twice(
        self, make_backend: MakeBackend, make_model: MakeModel
    ) -> None:
        """A second close does nothing."""
        async with registered(make_backend, make_model) as (backend, _):
            await backend.close()

    async def test_a_backend_may_be_closed_unused(self, make_backend: MakeBackend) -> None:
        """Closing does nothing before a model is registered."""
        unused = make_backend()
        await unused.close()
