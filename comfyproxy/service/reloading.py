"""The configuration is read again while the proxy runs: what can be changed at once is, all else is named."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from comfyproxy.settings import BadSettings, Settings, warnings
from comfyproxy.settings.changes import changes, merged

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Applier:
    """Whoever lets some settings take effect.

    Attributes:
        keys: of the schema; one with a dot at its end stands for all that are below it.
        apply: gets all settings as they are from now on. The first that is called may raise BadSettings, as long as it
            has changed nothing.
    """

    keys: tuple[str, ...]
    apply: Callable[[Settings], None]

    def takes(self, key: str) -> bool:
        """Whether a key is one of its own."""
        return any(key == own or (own.endswith(".") and key.startswith(own)) for own in self.keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reloaded:
    """What became of the changes, by dotted path."""

    applied: list[str]
    needs_restart: list[str]


class Reloads:
    """Reads the configuration again and lets it take effect.

    Args:
        settings: those that are in effect now.
        read: reads the configuration as at the start, from wherever it came. May raise BadSettings.
        appliers: in the order in which they are called; whoever takes a key is called where it has changed.
        wanted: is set by whoever wants a reload and does not wait for it.

    Attributes:
        settings: those that are in effect; what needs a restart is in them as it was.
    """

    def __init__(
        self,
        settings: Settings,
        read: Callable[[], Settings],
        appliers: Sequence[Applier],
        *,
        wanted: asyncio.Event | None = None,
    ) -> None:
        self.settings, self._read, self._appliers = settings, read, appliers
        self._wanted = asyncio.Event() if wanted is None else wanted
        self._turn = asyncio.Lock()

    async def run(self) -> None:
        """Reload when it is wanted, for ever."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self.reload()
            except BadSettings:
                continue  # the log has it

    async def reload(self) -> Reloaded:
        """Read the configuration and apply what can be applied.

        Raises BadSettings, with all that is wrong; then nothing has changed.
        """
        async with self._turn:  # what was read last shall be what is in effect
            try:
                new = await asyncio.to_thread(self._read)  # of a thousand nodes it takes its time
                reloaded = self._apply(new)
            except BadSettings as exc:
                for problem in exc.problems:
                    log.error("the configuration stays as it was: %s", problem)
                raise
        for line in warnings(new):
            log.warning("%s", line)
        log.info("the configuration was read again: %s", ", ".join(reloaded.applied) or "nothing is to be applied")
        if reloaded.needs_restart:
            log.warning("these changes need a restart: %s", ", ".join(reloaded.needs_restart))
        return reloaded

    def _apply(self, new: Settings) -> Reloaded:
        found = changes(self.settings, new)
        settings = merged(self.settings, new, self._is_taken)
        for applier in self._appliers:
            if any(applier.takes(change.key) for change in found):
                applier.apply(settings)
        self.settings = settings
        return Reloaded(
            applied=[change.path for change in found if self._is_taken(change.key)],
            needs_restart=[change.path for change in found if not self._is_taken(change.key)],
        )

    def _is_taken(self, key: str) -> bool:
        return any(applier.takes(key) for applier in self._appliers)
