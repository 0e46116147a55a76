"""What clients see through the proxy is what they see of a real server, be there one behind it or several."""

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from conformance_comparison import differences
from conformance_driver import SCENARIOS, play
from conformance_recording import Recording, real
from proxied import running_proxy

from comfyproxy.simulator import SimulatedBackend

NEW, OLD = "0.25.0", "0.3.64"

# The jobs API is the proxy's own: that of the new version, whatever the backends are.
WITHOUT_JOBS = tuple(name for name in SCENARIOS if name != "jobs")
# With a second backend the prompts that wait in `queue_control` run at once.
OF_A_FLEET = tuple(name for name in SCENARIOS if name != "queue_control")


@dataclass
class Fleet:
    backends: Mapping[str, SimulatedBackend]
    recording: Recording

    def differences(self, *versions: str, only: Collection[str]) -> list[str]:
        nodes = self.backends if len(self.backends) > 1 else ()
        return differences(self.recording, {version: real(version) for version in versions}, nodes=nodes, only=only)

    def idle(self) -> list[str]:
        """Return the backends that have run nothing, and so prove nothing."""
        return [name for name, backend in self.backends.items() if not backend.executed]


@asynccontextmanager
async def recorded(versions: Mapping[str, str], only: Collection[str] = SCENARIOS) -> AsyncIterator[Fleet]:
    """Play scenarios through a proxy in front of simulated servers, given as names to versions."""
    async with AsyncExitStack() as stack:
        backends = {
            name: await stack.enter_async_context(SimulatedBackend(name=name, version=version))
            for name, version in versions.items()
        }
        async with running_proxy({name: backend.url for name, backend in backends.items()}) as url:
            yield Fleet(backends, await play(url, only))


def assert_none(found: list[str]) -> None:
    assert not found, "\n" + "\n".join(found)


async def test_one_backend_behind_the_proxy_looks_like_itself() -> None:
    async with recorded({"gpu-a": NEW}) as fleet:
        assert_none(fleet.differences(NEW, only=SCENARIOS))


async def test_an_old_backend_behind_the_proxy_looks_like_itself_with_the_new_jobs_api() -> None:
    async with recorded({"gpu-a": OLD}) as fleet:
        assert_none(fleet.differences(OLD, only=WITHOUT_JOBS) + fleet.differences(NEW, only=["jobs"]))


async def test_three_backends_behind_the_proxy_look_like_one() -> None:
    async with recorded({"gpu-a": NEW, "gpu-b": NEW, "gpu-c": NEW}, only=OF_A_FLEET) as fleet:
        assert_none(fleet.differences(NEW, only=OF_A_FLEET))
        assert fleet.idle() == []


async def test_two_versions_behind_the_proxy_look_like_one_or_the_other() -> None:
    async with recorded({"gpu-a": NEW, "gpu-b": OLD}, only=OF_A_FLEET) as fleet:
        of_either = [name for name in OF_A_FLEET if name in WITHOUT_JOBS]
        assert_none(fleet.differences(NEW, OLD, only=of_either) + fleet.differences(NEW, only=["jobs"]))
        assert fleet.idle() == []
