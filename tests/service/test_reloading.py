"""The configuration is read again: what is applied, what is not, and what is left alone."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from comfyproxy.service.reloading import Applier, Reloaded, Reloads
from comfyproxy.settings import BadSettings, Problem, QueueSettings, ServerSettings, Settings


@dataclass
class Stage:
    """A configuration that can be changed, and who hears of it."""

    written: Settings | BadSettings = field(default_factory=Settings)
    applied: list[tuple[str, Settings]] = field(default_factory=list)
    wanted: asyncio.Event = field(default_factory=asyncio.Event)
    refused: BadSettings | None = None

    def __post_init__(self) -> None:
        appliers = [
            Applier(("scheduling.", "nodes.load_balancing.strategy"), self.schedule),
            Applier(("queue.",), self.noted("queue")),
            Applier(("catalog.max_age", "interrupt_without_id"), self.noted("others")),
        ]
        self.reloads = Reloads(Settings(), self.read, appliers, wanted=self.wanted)

    def read(self) -> Settings:
        if isinstance(self.written, BadSettings):
            raise self.written
        return self.written

    def noted(self, name: str) -> Callable[[Settings], None]:
        return lambda settings: self.applied.append((name, settings))

    def schedule(self, settings: Settings) -> None:
        if self.refused is not None:
            raise self.refused
        self.applied.append(("scheduling", settings))


@pytest.fixture
def stage() -> Stage:
    return Stage()


BAD = BadSettings([Problem("my.yaml", "unknown key", "x", 3), Problem("my.yaml", "unknown key", "y", 5)])
QUEUE = QueueSettings(max_jobs=5)
SERVER = ServerSettings(port=1)


async def test_only_those_hear_of_it_whose_keys_have_changed(stage: Stage) -> None:
    stage.written = replace(Settings(), queue=QUEUE, interrupt_without_id="reject")
    assert await stage.reloads.reload() == Reloaded(
        applied=["queue.max_jobs", "interrupt_without_id"], needs_restart=[]
    )
    assert stage.applied == [("queue", stage.written), ("others", stage.written)]
    assert await stage.reloads.reload() == Reloaded(applied=[], needs_restart=[])
    assert len(stage.applied) == 2


async def test_what_nobody_applies_needs_a_restart_and_is_named_until_there_is_one(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.written = replace(Settings(), queue=QUEUE, server=SERVER)
    assert (await stage.reloads.reload()).needs_restart == ["server.port"]
    assert "these changes need a restart: server.port" in caplog.text
    assert stage.applied == [("queue", replace(Settings(), queue=QUEUE))]  # the port is still the old one
    assert await stage.reloads.reload() == Reloaded(applied=[], needs_restart=["server.port"])
    stage.written = replace(Settings(), queue=QUEUE)
    assert await stage.reloads.reload() == Reloaded(applied=[], needs_restart=[])


async def test_a_bad_configuration_changes_nothing_and_says_why(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.written = BAD
    with pytest.raises(BadSettings):
        await stage.reloads.reload()
    assert [record.getMessage() for record in caplog.records] == [
        "the configuration stays as it was: my.yaml:3: x: unknown key",
        "the configuration stays as it was: my.yaml:5: y: unknown key",
    ]
    assert (stage.applied, stage.reloads.settings) == ([], Settings())


async def test_the_first_who_applies_may_refuse_and_then_nothing_has_changed(stage: Stage) -> None:
    stage.refused = BAD
    scheduling = replace(Settings().scheduling, priority_ageing=1.0)
    stage.written = replace(Settings(), queue=QUEUE, scheduling=scheduling)
    with pytest.raises(BadSettings):
        await stage.reloads.reload()
    assert (stage.applied, stage.reloads.settings) == ([], Settings())
    stage.refused = None
    assert (await stage.reloads.reload()).applied == ["scheduling.priority_ageing", "queue.max_jobs"]


async def test_a_signal_is_enough_and_a_bad_configuration_does_not_end_it(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    running = asyncio.create_task(stage.reloads.run())
    async with asyncio.timeout(5):
        stage.written = BAD
        stage.wanted.set()
        while "stays as it was" not in caplog.text:
            await asyncio.sleep(0)
        stage.written = replace(Settings(), queue=QUEUE)
        stage.wanted.set()
        while not stage.applied:
            await asyncio.sleep(0)
    assert "the configuration was read again: queue.max_jobs" in caplog.text
    running.cancel()


async def test_two_at_once_come_one_after_the_other(stage: Stage) -> None:
    stage.written = replace(Settings(), queue=QUEUE)
    answers = await asyncio.gather(stage.reloads.reload(), stage.reloads.reload())
    assert [answer.applied for answer in answers] == [["queue.max_jobs"], []]
