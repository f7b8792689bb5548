import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import art_core as art
from art_core.base.threads import widen_thread_pool

AGENTS = 100


async def gathered(agent):
    async def attempt():
        await asyncio.to_thread(agent)
        return art.Trajectory()

    return await art.gather_trajectories((attempt() for _ in range(AGENTS)), pbar_desc=None)


async def test_a_hundred_agents_that_are_no_coroutines_run_at_the_same_time():
    await asyncio.to_thread(int)  # asyncio makes a pool of its own
    together = threading.Barrier(AGENTS, timeout=30.0)
    assert len(await gathered(together.wait)) == AGENTS
    assert len(await gathered(together.wait)) == AGENTS


async def test_a_pool_of_the_programs_own_is_left_alone():
    names = set()
    with ThreadPoolExecutor(1, thread_name_prefix="mine") as pool:
        asyncio.get_running_loop().set_default_executor(pool)
        await gathered(lambda: names.add(threading.current_thread().name))
        assert names == {"mine_0"}


async def test_an_awaited_group_has_room_too():
    together = threading.Barrier(AGENTS, timeout=30.0)

    async def attempt():
        await asyncio.to_thread(together.wait)
        return art.Trajectory()

    assert len(await art.TrajectoryGroup(attempt() for _ in range(AGENTS))) == AGENTS


def test_an_event_loop_that_shows_no_pool_gets_one_once():
    class Opaque(asyncio.SelectorEventLoop):
        pools = 0

        def __getattribute__(self, name):
            if name == "_default_executor" and not self.__dict__.get("open"):
                raise AttributeError(name)
            return super().__getattribute__(name)

        def set_default_executor(self, executor):
            self.pools += 1

    async def twice():
        widen_thread_pool()
        widen_thread_pool()

    loop = Opaque()
    loop.run_until_complete(twice())
    loop.open = True
    loop.close()
    assert loop.pools == 1
