"""Asking backends, and what is kept of their answers."""

import asyncio
import gc
import json
import math
from typing import Any

import pytest
from catalogs_support import MAX_AGE_S, PATIENCE_S, Stage, node
from virtual_time import all_quiet

from comfyproxy.service.contents import Pool
from comfyproxy.service.sources import LEARNED, MAX_ASKED, OBJECT_INFO

CHECKPOINTS = "/models/checkpoints"


async def refresh(stage: Stage, path: str = CHECKPOINTS) -> None:
    await stage.sources.refresh(path, list(stage.fleet), max_age_s=MAX_AGE_S)


async def test_a_backend_is_asked_what_it_is_and_what_it_can_run() -> None:
    stage = Stage("a")
    stage.backend("a").catalog = None
    backend = stage.backend("a")
    assert stage.sources.age_s(backend) == math.inf
    await stage.sources.learn(backend)
    assert backend.version == "0.25.0"
    assert backend.features == {"supports_preview_metadata": True, "of": "a"}
    assert backend.catalog is not None
    assert backend.catalog.classes == {"Loader"}
    assert stage.fleet.combos == {"Loader": {"model"}}
    stage.passes(7.0)
    assert stage.sources.age_s(backend) == 7.0


@pytest.mark.parametrize("path", LEARNED)
async def test_what_was_not_found_out_has_no_age(path: str) -> None:
    stage = Stage("a")
    stage["a"].status[path] = 500
    await stage.sources.learn(stage.backend("a"))
    assert stage.sources.age_s(stage.backend("a")) == math.inf
    stage["a"].status[path] = 404
    await stage.sources.learn(stage.backend("a"))
    assert stage.sources.age_s(stage.backend("a")) == 0, "that was an answer"


async def test_a_failure_to_learn_does_not_count_against_the_backend_and_one_to_refresh_does() -> None:
    stage = Stage("a")
    suspected: list[str] = []
    stage.fleet.on_suspicion = lambda backend: suspected.append(backend.id)
    stage["a"].breaks()
    await stage.sources.learn(stage.backend("a"))
    before = list(suspected)
    assert before == []
    await refresh(stage)
    assert suspected == ["a"]
    stage["a"].talks_nonsense()
    stage.passes(MAX_AGE_S)
    await refresh(stage)
    assert suspected == ["a"]


async def test_a_refreshed_object_info_refreshes_what_a_backend_can_run() -> None:
    stage = Stage("a")
    await stage.loaders()
    stage["a"].answers[OBJECT_INFO] = node(Loader=[], Other=[])
    stage.passes(MAX_AGE_S)
    await stage.loaders()
    catalog = stage.backend("a").catalog
    assert catalog is not None
    assert catalog.classes == {"Loader", "Other"}


async def test_what_a_backend_said_before_its_restart_is_old() -> None:
    stage = Stage("a", "b")
    await stage.checkpoints()
    stage["a"].answers[CHECKPOINTS] = ["new"]
    stage.sources.expire(stage.backend("a"))
    assert await stage.checkpoints() == ["new", "b.safetensors"]
    assert stage.asked(CHECKPOINTS) == [2, 1]


async def test_an_answer_to_a_question_from_before_a_restart_is_not_trusted() -> None:
    stage = Stage("a")
    backend, speaker = stage.backend("a"), stage["a"]
    speaker.takes_s = 1.0
    asking = asyncio.create_task(refresh(stage, OBJECT_INFO))
    await all_quiet()
    learning = asyncio.create_task(stage.sources.learn(backend))
    await asyncio.gather(asking, learning)
    assert speaker.asked[OBJECT_INFO] == 2
    assert stage.sources.age_s(backend) <= 1.0


async def test_a_backend_that_expires_while_it_learns_has_to_learn_again() -> None:
    stage = Stage("a")
    stage["a"].takes_s = 1.0
    learning = asyncio.create_task(stage.sources.learn(stage.backend("a")))
    await all_quiet()
    stage.sources.expire(stage.backend("a"))
    await learning
    assert stage.sources.age_s(stage.backend("a")) == math.inf


async def test_who_gives_up_does_not_stop_the_asking() -> None:
    stage = Stage("a")
    stage["a"].takes_s = 1.0
    first = asyncio.create_task(stage.checkpoints())
    await all_quiet()
    first.cancel()
    assert await stage.checkpoints() == ["a.safetensors"]
    assert stage.asked(CHECKPOINTS) == [1]


async def test_only_so_many_are_asked_at_a_time() -> None:
    names = [f"gpu-{number}" for number in range(2 * MAX_ASKED)]
    stage = Stage(*names)
    at_once = 0
    most = 0

    def count(change: int) -> None:
        nonlocal at_once, most
        at_once += change
        most = max(most, at_once)

    for speaker in stage.speakers.values():
        speaker.takes_s = 0.1
        speaker.on_change = count
    await refresh(stage)
    assert stage.asked(CHECKPOINTS) == [1] * len(names)
    assert most == MAX_ASKED


async def test_a_bug_is_not_taken_for_a_failure_of_the_backend(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage("a")
    stage["a"].failure = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        await refresh(stage)
    assert "GET /models/checkpoints of a failed" in caplog.text


async def test_closing_stops_the_asking() -> None:
    stage = Stage("a")
    stage["a"].takes_s = 100 * PATIENCE_S
    asking = asyncio.create_task(refresh(stage))
    await all_quiet()
    begun_s = stage.time()
    await stage.sources.close()
    assert stage["a"].now_asked == 0
    assert stage.time() - begun_s < 1
    await asking


@pytest.mark.parametrize("odd", [[], {"system": 5}, {"system": {"comfyui_version": 5}}, b"nonsense"])
async def test_odd_stats_say_no_version(odd: Any) -> None:
    stage = Stage("a")
    stage["a"].answers["/system_stats"] = odd
    await stage.sources.learn(stage.backend("a"))
    assert stage.backend("a").version is None


# What is kept


def test_what_backends_say_alike_is_kept_once() -> None:
    pool = Pool()
    first, second = (json.dumps(node(A=["x"], B=[name])).encode() for name in "xy")
    one, other = pool.catalog(first), pool.catalog(second)
    assert pool.catalog(bytes(bytearray(first))) is one
    assert one is not other
    assert one.definitions["A"] is other.definitions["A"]
    assert one.definitions["B"] is not other.definitions["B"]
    assert pool.listing(b"[]") is pool.listing(bytes(bytearray(b"[]")))


def test_what_nobody_holds_is_forgotten() -> None:
    pool = Pool()
    pool.catalog(json.dumps(node(A=["x"])).encode())
    pool.listing(b"[]")
    gc.collect()
    shared = pool._shared
    kept = (pool._catalogs, pool._listings, shared._definitions, shared._choices)
    assert [len(each) for each in kept] == [0, 0, 0, 0]
