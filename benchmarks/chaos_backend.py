"""A simulated backend as a process that may be killed at any time: what it has run is in a file, with the time.

    python benchmarks/chaos_backend.py NAME PORT CONTROL_PORT FOLDER

Its journal over the control port would die with it. `FOLDER/journal` has a line for each prompt that began to run:
seconds since the epoch, and the id.
"""

import asyncio
import signal
import sys
import time
from pathlib import Path

from comfyproxy.simulator import SimulatedBackend


class Noted(list[str]):
    """A list that writes down what it is given, at once."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("a", buffering=1)

    def append(self, prompt_id: str) -> None:
        self._file.write(f"{time.time():.3f} {prompt_id}\n")
        super().append(prompt_id)


async def serve(name: str, port: int, control_port: int, folder: Path) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    backend = SimulatedBackend(name=name, base_dir=folder, control=True, control_port=control_port)
    backend._journal.executed = Noted(folder / "journal")
    await backend.start(port=port)
    try:
        await stop.wait()
    finally:
        await backend.stop()


if __name__ == "__main__":
    _, name, port, control_port, folder = sys.argv
    asyncio.run(serve(name, int(port), int(control_port), Path(folder)))
