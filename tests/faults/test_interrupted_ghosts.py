"""A run that has moved on is interrupted where it was: no later proxy may take that for the end of its job."""

import pytest
import service_path  # noqa: F401
from service_support import Stage

from comfyproxy.core.jobs import JobState
from comfyproxy.core.ports import StoreUnavailable
from comfyproxy.service.live import LiveJob
from comfyproxy.service.recovery import recover


async def _haunts(stage: Stage, **changes: str) -> LiveJob:
    """Let a job be lost by a backend that was silent and has it all the same."""
    live = await stage.has("a", "p", runs=True, **changes)
    stage.failover.lose(live, "silent for too long", may_run_on=True)
    return live


async def test_it_is_stored_that_a_prompt_waits_again_before_its_old_run_is_interrupted() -> None:
    async with Stage("a") as stage:
        for changes in ({}, {"backend_prompt_id": "its-own-id"}):
            live = await _haunts(stage, **changes)
            backend, client = stage.backend("a"), stage.client("a")
            stage.store.fails["update"] = 1
            view = await client.queue()
            with pytest.raises(StoreUnavailable):
                await stage.ghosts.lay(backend, view)
            assert client.called("interrupt") == []
            await stage.ghosts.lay(backend, view)
            stored = await stage.store.get("p")
            assert stored is not None
            assert (stored.state, stored.backend) == (JobState.QUEUED, None)
            assert client.called("interrupt") == [changes.get("backend_prompt_id", "p")]
            client.calls.clear()
            client.running.clear()
            stage.board.remove(live)


async def test_a_new_proxy_runs_a_prompt_again_whose_old_run_was_interrupted() -> None:
    async with Stage("a", "b") as stage:
        await _haunts(stage)
        await stage.ghosts.lay(stage.backend("a"), await stage.client("a").queue())
        stage.ends("a", "p", "execution_interrupted")
        async with Stage("a", "b") as heir:
            heir.store._unfinished = stage.store._unfinished
            heir.client("a").entries = stage.client("a").entries
            await recover(heir.board, heir.store, heir.fleet, heir.placement, heir.dispatcher, heir.reconciler)
            heir.dispatch()
            for name in ("a", "b"):
                await heir.reconciler.check(heir.backend(name))
            await heir.quiet()
            (name,) = (name for name in ("a", "b") if heir.client(name).pending == ["p"])
            heir.ends(name, "p")
            await heir.reconciler.check(heir.backend(name))
            await heir.quiet()
            ended = await heir.store.get("p")
            assert ended is not None
            assert ended.state is JobState.SUCCEEDED
