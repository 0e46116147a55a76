"""What the simulated nodes live in: folders, memory for models, and time."""

import asyncio
import random
import time
from dataclasses import dataclass

from .faults import Faults
from .folders import Folders
from .options import SimulatorOptions
from .profile import Profile


class Pace:
    """Spends nominal time: divided by the speed, and standing still while the server is frozen.

    Attributes:
        speed: how many times faster than nominal; what is being spent right now keeps its speed.
        spent_s: the time spent, in seconds of the simulated machine. It is what nodes take for the clock, so that
            what they do does not depend on how busy this machine is.
    """

    def __init__(self, speed: float, faults: Faults) -> None:
        self.speed, self._faults = speed, faults
        self.spent_s = 0.0

    async def spend(self, seconds: float) -> None:
        """Let at least `seconds` of nominal time pass; like `time.sleep`, it never ends too early."""
        self.spent_s += seconds / self.speed
        end = time.perf_counter() + seconds / self.speed
        await asyncio.sleep(0)
        while (left := end - time.perf_counter()) > 0:  # noqa: ASYNC110  (the clock sets no event)
            await asyncio.sleep(left)
        await self._faults.gate()


class ModelMemory:
    """The checkpoints that are in memory, those used last.

    Attributes:
        loads: the names of those that had to be loaded, in order; the list that was handed in.
    """

    def __init__(self, capacity: int, load_seconds: float, pace: Pace, loads: list[str]) -> None:
        self._capacity, self._load_seconds, self._pace = capacity, load_seconds, pace
        self._resident: list[str] = []
        self.loads = loads

    @property
    def resident(self) -> tuple[str, ...]:
        """The names of the checkpoints in memory, the one used last at the end."""
        return tuple(self._resident)

    async def use(self, name: str) -> None:
        """Make sure that a checkpoint is in memory; costs time if it is not."""
        if name in self._resident:
            self._resident.remove(name)
        else:
            self.loads.append(name)
            await self._pace.spend(self._load_seconds)
        self._resident.append(name)
        del self._resident[: -self._capacity]

    def unload_all(self) -> None:
        self._resident.clear()


@dataclass(frozen=True, slots=True)
class World:
    """Everything a node may use."""

    options: SimulatorOptions
    profile: Profile
    folders: Folders
    memory: ModelMemory
    pace: Pace
    random: random.Random
