"""Plays the scenarios against a server, and returns what it answered as a recording."""

import asyncio
from collections.abc import Awaitable, Callable, Collection

import aiohttp
from conformance_recording import Recording
from conformance_stage import Stage
from scenarios_files import outputs_as_inputs, uploads, views
from scenarios_queue import history_control, interrupt_by_id, interrupt_global, jobs, own_prompt_id, queue_control
from scenarios_requests import browser_origin, rejected, user_data
from scenarios_runs import handshake, previews, run_cached, run_simple, runtime_error, text_output, two_clients

_LIMIT_S = 90.0  # for one scenario

# In the order of the recordings. `handshake` wants a fresh server, with empty folders; the others also go alone.
_ORDER: tuple[Callable[[Stage], Awaitable[None]], ...] = (
    *(handshake, run_simple, run_cached, previews, views, rejected, own_prompt_id, runtime_error),
    *(interrupt_by_id, interrupt_global, queue_control, two_clients, uploads, outputs_as_inputs, text_output),
    *(user_data, browser_origin, jobs, history_control),
)
SCENARIOS = tuple(scenario.__name__ for scenario in _ORDER)


async def play(base: str, only: Collection[str] = SCENARIOS) -> Recording:
    """Play scenarios in their order.

    Args:
        base: URL of the server, without a slash at its end.
        only: names of scenarios.
    """
    recording: Recording = {"scenarios": {}, "errors": {}}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_LIMIT_S)) as session:
        for scenario in _ORDER:
            name = scenario.__name__
            if name not in only:
                continue
            stage = Stage(base, session)
            recording["scenarios"][name] = stage.steps
            try:
                async with asyncio.timeout(_LIMIT_S):
                    await scenario(stage)
            except Exception as error:  # whatever it is, it is what the server did, and the others are played
                recording["errors"][name] = f"{type(error).__name__}: {error}"
    return recording
