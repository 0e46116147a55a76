"""How a signal stops what runs, and what the next one does."""

import asyncio
import signal
import sys
from pathlib import Path

import pytest
from commands_support import running

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")

# A process that is asked to stop and does not get done with it.
STUBBORN = """
import asyncio
from comfyproxy import eventloop

async def main():
    stop = asyncio.Event()
    eventloop.stop_on_signals(stop)
    print("ready", flush=True)
    await stop.wait()
    print("asked", flush=True)
    asyncio.get_running_loop().call_later(eventloop._ECHO_S + 0.1, lambda: print("impatient", flush=True))
    await asyncio.sleep(60)

with asyncio.Runner(loop_factory=%s) as runner:
    runner.run(main())
"""


@pytest.mark.parametrize("factory", ["eventloop.loop_factory()", "None"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_later_signal_kills_but_the_echo_of_the_first_does_not(
    number: signal.Signals, factory: str, tmp_path: Path
) -> None:
    async with running(cwd=tmp_path, command=("-c", STUBBORN % factory)) as process:
        assert await process.line() == "ready"
        process.process.send_signal(number)
        assert await process.line() == "asked"
        process.process.send_signal(number)
        assert await process.line() == "impatient"
        assert await process.stopped(number) == (-number, "", "")


async def test_the_commands_end_with_0_when_a_wrapper_repeats_the_signal(tmp_path: Path) -> None:
    async with running("simulate", "--port", "0", cwd=tmp_path) as process:
        assert (await process.line()).startswith("simulated ComfyUI ")
        process.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0)
        assert await process.stopped() == (0, "", "")
