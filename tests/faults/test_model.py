"""The whole service under any order of what clients, backends, the network, the clock and death may do.

What runs is the real service over a store in memory, in a loop whose time is virtual: a step of the machine lets the
loop turn as often, or the clock advance as far, as hypothesis likes. The promises are checked after every step, and at
the end, when all is calm again. `MODEL_EXAMPLES` says how many orders are tried.
"""

import asyncio
import copy
import json
import os
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import service_path  # noqa: F401
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from model_world import Calls, Server
from service_support import GRAPH, Stage

from comfyproxy.core.errors import ComfyproxyError
from comfyproxy.core.health import Health
from comfyproxy.core.jobs import JobState
from comfyproxy.service.fleet import Backend
from comfyproxy.service.prober import Prober
from comfyproxy.service.recovery import recover

NAMES = ("a", "b")
ENDS = ("execution_success", "execution_error", "execution_interrupted")
PROBE_EVERY_S = 10.0
UP_AFTER_S = 2.5  # a backend has passed the probes that it takes to be ready
TURNS = st.integers(0, 8)
NAME = st.sampled_from(NAMES)
LOSSES = ("request", "answer", "unread")
BLOWS = (*LOSSES, "cut", "kill", "restart", "freeze", "freeze")
MAX_RETRIES = 3  # as the stage has it
CALM_ROUNDS = 60


class NothingToLearn:
    """What backends can run is known, and of no interest here."""

    def age_s(self, backend: Any) -> float:
        return 0.0

    def expire(self, backend: Any) -> None:
        pass


class ServiceMachine(RuleBasedStateMachine):
    """Plays all but the service."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.problems: list[str] = []
        self.servers = {name: Server(name, self.loop_time, self.check_submit) for name in NAMES}
        self.asked: list[str] = []  # ids that clients have chosen
        self.accepted: set[str] = set()
        self.cancelling: set[str] = set()  # somebody has asked for that
        self.told: Counter[str] = Counter()
        self.inherited: set[str] = set()  # bound already when this proxy began
        self.settled: Counter[str] = Counter()
        self.faults = 0
        self.stage: Stage | None = None
        self.works: list[asyncio.Task[Any]] = []
        self.run(self.live())
        self.run(asyncio.sleep(UP_AFTER_S))

    # How it is played

    def run(self, work: Coroutine[Any, Any, Any]) -> None:
        self.loop.run_until_complete(work)

    def loop_time(self) -> float:
        return self.loop.time()

    def turn(self, turns: int) -> None:
        async def turning() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.run(turning())

    async def live(self) -> None:
        """Let a proxy begin its life: with the store of the one before it, as that was when it died."""
        before = self.stage
        stage = Stage(*NAMES, max_concurrent=1)
        self.stage, self.calls = stage, []
        if before is not None:
            kept = {
                name: copy.copy(value) for name, value in vars(before.store).items() if name not in ("fails", "changes")
            }
            vars(stage.store).update(kept)
        for name, server in self.servers.items():
            backend = stage.backend(name)
            backend.client = Calls(server)
            backend.health = Health()
            self.calls.append(backend.client)
        prober = Prober(
            stage.fleet,
            stage.reconciler,
            NothingToLearn(),  # type: ignore[arg-type]
            stage.observer,
            interval_s=PROBE_EVERY_S,
            now=stage.time,
            jitter=lambda low, high: (low + high) / 2,
        )
        stage.fleet.on_suspicion = prober.suspect

        def restored(backend: Backend) -> None:
            stage.dispatcher.wake()
            stage.submissions.backend_restored()

        stage.fleet.on_restored = restored
        stage.relay.on_load = prober.on_load = stage.dispatcher.wake
        stage.streams.on_told = self.hear
        await recover(stage.board, stage.store, stage.fleet, stage.placement, stage.dispatcher, stage.reconciler)
        self.inherited = {prompt_id for name in NAMES for prompt_id in stage.backend(name).in_flight}
        stage.dispatch()
        for backend in stage.fleet:
            stage.works.spawn(prober.watch(backend), name="prober")

    def die(self) -> None:
        """Let the proxy die, with all that it was doing."""
        for calls in self.calls:
            calls.is_severed = True

        async def bury() -> None:
            tasks = {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        changes = self.the_stage.store.changes
        self.count_settled(changes)
        kept = {name: copy.copy(value) for name, value in vars(self.the_stage.store).items()}
        self.the_stage.streams.on_told = lambda: None
        self.run(bury())
        vars(self.the_stage.store).update(kept)  # whatever the dead one still did is not done
        self.works.clear()

    @property
    def the_stage(self) -> Stage:
        assert self.stage is not None
        return self.stage

    def count_settled(self, changes: list[tuple[str, str, JobState | None]]) -> None:
        self.settled.update(prompt_id for method, prompt_id, _ in changes if method in ("settle", "cancel"))
        changes.clear()

    def hear(self) -> None:
        """A client was told something: of an end only when history has it."""
        _, message = self.the_stage.streams.told[-1]
        if isinstance(message, dict) and message["type"] in ENDS:
            prompt_id = message["data"]["prompt_id"]
            self.told[prompt_id] += 1
            if prompt_id not in self.the_stage.store._settled:
                self.problems.append(f"{prompt_id} was told to have ended before history had it")

    def check_submit(self, to: Server, prompt_id: str) -> None:
        """A backend takes a prompt: none that is alive has it, unless it was given up there."""
        for server in self.servers.values():
            if prompt_id in server.has and not server.is_excused(prompt_id):
                self.problems.append(f"{prompt_id} came to {to.name} while {server.name} had it")

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        async def begin() -> None:
            self.works.append(asyncio.ensure_future(work))

        self.run(begin())

    # Clients

    async def hand_in(self, prompt_id: str) -> None:
        body = {"prompt": GRAPH, "client_id": "c", "prompt_id": prompt_id, "extra_data": {}}
        try:
            receipt = await self.the_stage.submissions.submit(json.dumps(body).encode())
        except ComfyproxyError:
            return
        if receipt.status == 200:
            self.accepted.add(prompt_id)

    @rule(count=st.integers(1, 3), turns=TURNS)
    def submit(self, count: int, turns: int) -> None:
        for _ in range(count):
            prompt_id = f"p{len(self.asked)}"
            self.asked.append(prompt_id)
            self.start(self.hand_in(prompt_id))
        self.turn(turns)

    @rule(which=st.integers(0, 3), turns=TURNS)
    def submit_again(self, which: int, turns: int) -> None:
        if self.asked:
            self.start(self.hand_in(self.asked[-1 - which % len(self.asked)]))
            self.turn(turns)

    @rule(which=st.integers(0, 3), how=st.sampled_from(("cancel", "delete", "interrupt")), turns=TURNS)
    def cancel(self, which: int, how: str, turns: int) -> None:
        if not self.asked:
            return
        prompt_id = self.asked[-1 - which % len(self.asked)]
        self.cancelling.add(prompt_id)
        control = self.the_stage.control

        async def ask() -> None:
            try:
                if how == "cancel":
                    await control.cancel([prompt_id])
                elif how == "delete":
                    await control.delete_pending([prompt_id])
                else:
                    await control.interrupt(prompt_id)
            except ComfyproxyError:
                pass

        self.start(ask())
        self.turn(turns)

    # Backends and network

    @rule(name=NAME, turns=TURNS)
    def run_next(self, name: str, turns: int) -> None:
        self.servers[name].start()
        self.turn(turns)

    @rule(name=NAME, is_error=st.booleans(), turns=TURNS)
    def end_run(self, name: str, is_error: bool, turns: int) -> None:
        self.servers[name].end("execution_error" if is_error else "execution_success")
        self.turn(turns)

    @rule(name=NAME, turns=TURNS)
    def deliver(self, name: str, turns: int) -> None:
        self.pass_on(name)
        self.turn(turns)

    def pass_on(self, name: str) -> None:
        """Let the link receive what was said."""
        server = self.servers[name]
        if not server.is_frozen:
            heard, server.heard = server.heard, []
            for event, data in heard:
                self.run(self.receive(name, event, data))

    async def receive(self, name: str, event: str, data: dict[str, Any]) -> None:
        self.the_stage.says(name, event, data)

    # One rule for all that breaks, and one for a whole run: else hardly anything would ever get anywhere.

    @rule(name=NAME, how=st.sampled_from(BLOWS), times=st.integers(1, 3), turns=TURNS)
    def strike(self, name: str, how: str, times: int, turns: int) -> None:
        server = self.servers[name]
        self.faults += 1
        if how in LOSSES:
            server.faults += [how] * times
        else:
            {"cut": server.link_cut, "kill": server.kill, "restart": server.restart, "freeze": server.freeze}[how]()
        self.turn(turns)

    @rule(name=NAME, turns=TURNS, is_waited_for=st.booleans())
    def mend(self, name: str, turns: int, is_waited_for: bool) -> None:
        server = self.servers[name]
        server.thaw()
        if not server.is_alive:
            server.restart()
        self.turn(turns)
        if is_waited_for:
            self.run(asyncio.sleep(UP_AFTER_S))

    @rule(name=NAME, turns=TURNS)
    def run_one(self, name: str, turns: int) -> None:
        server = self.servers[name]
        server.start()
        self.pass_on(name)
        self.turn(3)
        server.end("execution_success")
        self.pass_on(name)
        self.turn(turns)

    # Store, clock and proxy

    @rule(method=st.sampled_from(("insert", "update", "settle", "cancel", "discard")))
    def fail_the_store(self, method: str) -> None:
        self.the_stage.store.fails[method] += 1

    @rule(turns=st.integers(1, 30))
    def let_it_turn(self, turns: int) -> None:
        self.turn(turns)

    @rule(seconds=st.sampled_from((0.1, 1.0, 5.0, 20.0, 90.0)))
    def wait(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @rule(turns=st.integers(0, 20), is_waited_for=st.booleans())
    def the_proxy_dies_and_starts_again(self, turns: int, is_waited_for: bool) -> None:
        now_s = self.loop.time()
        self.die()
        self.run(self.live())
        for server in self.servers.values():
            if server.frozen_s is not None:
                server.frozen_s += self.loop.time() - now_s  # each life has a clock of its own
        self.turn(turns)
        if is_waited_for:
            self.run(asyncio.sleep(UP_AFTER_S))

    # The promises

    @invariant()
    def nothing_was_promised_in_vain(self) -> None:
        assert not self.problems, self.problems
        for task in self.the_stage.works.tasks:
            if task.done() and not task.cancelled() and task.exception() is not None:
                raise AssertionError(f"{task.get_name()} would have ended the process") from task.exception()
        for work in self.works:
            if work.done():
                work.result()

    @invariant()
    def each_ends_once(self) -> None:
        self.count_settled(self.the_stage.store.changes)
        assert all(count == 1 for count in self.settled.values()), self.settled
        assert all(count == 1 for count in self.told.values()), self.told

    @invariant()
    def slots_are_kept(self) -> None:
        for name, server in self.servers.items():
            backend = self.the_stage.backend(name)
            # The store does not say of those on their way whether they were only to be judged.
            counted = backend.in_flight - server.visits - self.inherited
            assert len(counted) <= 1, f"{name}: {counted} of {backend.in_flight}"

    @invariant()
    def board_store_and_fleet_agree(self) -> None:
        stage = self.the_stage
        bound: dict[str, set[str]] = {name: set() for name in NAMES}
        for prompt_id, live in stage.board._live.items():
            if live.job.backend is not None:
                bound[live.job.backend].add(prompt_id)
            if live.is_admitted:
                assert prompt_id in stage.store._unfinished or live.is_settling, f"{prompt_id} is not in the store"
            assert not live.job.state.is_terminal, f"{prompt_id} has ended and is on the board"
        for name in NAMES:
            backend = stage.backend(name)
            assert backend.in_flight | backend.visitors == bound[name]
            assert not backend.in_flight & backend.visitors
        for prompt_id in self.accepted:
            is_ended = prompt_id in stage.store._settled
            assert is_ended or prompt_id in stage.store._unfinished, f"{prompt_id} was accepted, and is lost"
            assert is_ended or prompt_id in stage.board._live, f"{prompt_id} is stored, and nobody looks after it"

    def teardown(self) -> None:
        try:
            self.calm()
        finally:
            for calls in self.calls:
                calls.is_severed = True
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.run(asyncio.sleep(0))
            self.loop.close()

    def calm(self) -> None:
        """Mend everything, let all run to its end, and count."""
        stage = self.the_stage
        stage.store.fails.clear()
        for _ in range(CALM_ROUNDS):
            for name, server in self.servers.items():
                server.faults.clear()
                server.thaw()
                if not server.is_alive:
                    server.restart()
                server.start()
                self.turn(3)
                server.end("execution_success")
                self.pass_on(name)
            self.run(asyncio.sleep(7.0))
            if not stage.board._live and not any(s.pending or s.running for s in self.servers.values()):
                break
        self.nothing_was_promised_in_vain()
        self.each_ends_once()
        self.board_store_and_fleet_agree()
        assert not stage.board._live, f"these do not end: {[live.job for live in stage.board._live.values()]}"
        # One that was refused, and whose record the store failed to remove, may run after the next start.
        forgotten = self.accepted & set(stage.store._unfinished)
        assert not forgotten, f"these are forgotten: {forgotten}"
        assert not any(server.pending or server.running for server in self.servers.values())
        for prompt_id in self.accepted:
            ended = stage.store._settled[prompt_id].job
            if ended.state is JobState.CANCELLED:
                assert prompt_id in self.cancelling, f"{prompt_id} was cancelled, and nobody had asked for that"
            if ended.error is not None and "attempts" in ended.error:
                assert self.faults > MAX_RETRIES, f"{prompt_id}: {ended.error}"


EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "300"))

TestService = ServiceMachine.TestCase
TestService.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_a_judged_prompt_that_started_keeps_its_slot_until_the_death_of_its_backend_is_noticed() -> None:
    machine = ServiceMachine()

    def then() -> None:
        machine.slots_are_kept()
        machine.board_store_and_fleet_agree()

    try:
        machine.fail_the_store("insert")
        machine.submit(3, 0)
        machine.fail_the_store("settle")
        machine.deliver("a", 0)
        machine.run_one("b", 0)
        machine.submit(1, 0)
        machine.deliver("a", 0)
        machine.run_next("b", 0)
        machine.cancel(which=0, how="cancel", turns=0)
        then()
        machine.strike(name="a", how="request", times=1, turns=0)
        then()
        machine.strike(name="b", how="kill", times=1, turns=0)
        then()
    finally:
        machine.teardown()
