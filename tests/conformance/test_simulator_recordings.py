"""The simulator answers what real servers of both versions have answered."""

import pytest
from conformance_comparison import differences
from conformance_driver import SCENARIOS, play
from conformance_recording import VERSIONS, real

from comfyproxy.simulator import SimulatedBackend


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_simulator_equals_its_recording(version: str) -> None:
    # At nominal speed: how many steps 0.25.0 reports depends on the time that they take.
    async with SimulatedBackend(version=version) as backend:
        recording = await play(backend.url)
    assert list(recording["scenarios"]) == list(SCENARIOS) == list(real(version)["scenarios"])
    found = differences(recording, {version: real(version)})
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("name", ["jobs", "history_control"])
async def test_a_scenario_that_counts_on_the_ones_before_it_goes_alone(name: str) -> None:
    async with SimulatedBackend() as backend:
        recording = await play(backend.url, [name])
    found = differences(recording, {"0.25.0": real("0.25.0")}, only=[name])
    assert not found, "\n" + "\n".join(found)
