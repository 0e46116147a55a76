"""What the fleet has: merged, kept, and asked for again when it is too old."""

import asyncio
import gzip
import json

import pytest
from catalogs_support import MAX_AGE_S, PATIENCE_S, Stage, node, value

from comfyproxy.core.errors import NoBackend, UpstreamFailed
from comfyproxy.service.catalogs import Document
from comfyproxy.service.sources import MAX_PATHS, Refusal


async def test_choices_of_all_backends_are_offered_the_home_backends_first() -> None:
    stage = Stage("a", "b", "c")
    assert await stage.loaders() == ["a", "b", "c"]
    assert await stage.checkpoints() == ["a.safetensors", "b.safetensors", "c.safetensors"]
    stage.goes("a")
    assert await stage.loaders() == ["b", "c"]
    stage.comes("a")
    assert await stage.loaders() == ["b", "a", "c"], "home stays home"


async def test_what_is_young_enough_is_answered_without_asking() -> None:
    stage = Stage("a", "b")
    first = await stage.catalogs.object_info()
    for _ in range(3):
        stage.passes(MAX_AGE_S / 4)
        assert await stage.catalogs.object_info() is first
    assert stage.asked("/object_info") == [1, 1]


async def test_what_is_too_old_is_asked_for_before_the_answer() -> None:
    stage = Stage("a", "b")
    await stage.loaders()
    stage["b"].answers["/object_info"] = node(Loader=["b", "new"])
    assert await stage.loaders() == ["a", "b"]
    stage.passes(MAX_AGE_S)
    assert await stage.loaders() == ["a", "b", "new"]
    assert stage.asked("/object_info") == [2, 2]


async def test_equal_answers_are_not_merged_again() -> None:
    stage = Stage("a", "b")
    first = await stage.catalogs.object_info()
    stage.passes(MAX_AGE_S)
    assert await stage.catalogs.object_info() is first
    assert stage.asked("/object_info") == [2, 2]


async def test_many_requests_at_once_ask_each_backend_once() -> None:
    stage = Stage("a", "b")
    for speaker in stage.speakers.values():
        speaker.takes_s = 1.0
    found = await asyncio.gather(*(stage.catalogs.models("checkpoints") for _ in range(50)))
    assert len(set(map(id, found))) == 1
    assert stage.asked("/models/checkpoints") == [1, 1]


async def test_all_are_asked_at_the_same_time() -> None:
    stage = Stage("a", "b", "c")
    for speaker in stage.speakers.values():
        speaker.takes_s = 1.0
    begun_s = stage.time()
    await stage.checkpoints()
    assert stage.time() - begun_s == pytest.approx(1.0)


async def test_without_an_age_every_request_asks() -> None:
    stage = Stage("a", max_age_s=0.0)
    for name in ("x", "y"):
        stage["a"].answers["/models"] = [name]
        assert value(await stage.catalogs.model_kinds()) == [name]


async def test_a_slow_backend_delays_nobody_for_longer_than_the_patience_and_its_answer_counts_when_it_comes() -> None:
    stage = Stage("a", "b")
    await stage.checkpoints()
    stage["b"].answers["/models/checkpoints"] = ["late"]
    stage["b"].takes_s = 3 * PATIENCE_S
    stage.passes(MAX_AGE_S)
    begun_s = stage.time()
    assert await stage.checkpoints() == ["a.safetensors", "b.safetensors"]
    assert stage.time() - begun_s == pytest.approx(PATIENCE_S)
    assert await stage.checkpoints() == ["a.safetensors", "b.safetensors"]
    assert stage.time() - begun_s == pytest.approx(PATIENCE_S), "the next one does not wait for it"
    await asyncio.sleep(2 * PATIENCE_S)
    assert await stage.checkpoints() == ["a.safetensors", "late"]


async def test_as_long_as_nothing_is_known_one_waits_for_the_first_who_answers() -> None:
    stage = Stage("a", "b")
    stage["a"].takes_s, stage["b"].takes_s = 4 * PATIENCE_S, 3 * PATIENCE_S
    begun_s = stage.time()
    assert await stage.checkpoints() == ["b.safetensors"]
    assert stage.time() - begun_s == pytest.approx(3 * PATIENCE_S)
    await asyncio.sleep(2 * PATIENCE_S)
    assert await stage.checkpoints() == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize("how", ["breaks", "talks_nonsense"])
async def test_a_backend_that_fails_keeps_its_last_answer(how: str) -> None:
    stage = Stage("a", "b")
    await stage.loaders()
    getattr(stage["b"], how)()
    stage.passes(MAX_AGE_S)
    assert await stage.loaders() == ["a", "b"]
    await stage.loaders()
    assert stage.asked("/object_info") == [2, 2], "a failure is not asked for again at once"


async def test_an_error_of_a_server_does_not_hide_what_it_said_before() -> None:
    stage = Stage("a", "b")
    await stage.loaders()
    stage["b"].status["/object_info"] = 500
    stage.passes(MAX_AGE_S)
    assert await stage.loaders() == ["a", "b"]


@pytest.mark.parametrize("nonsense", [b"<html>", b"[]", b'{"A": 5}'])
async def test_an_answer_that_cannot_be_read_does_not_hide_what_was_said_before(nonsense: bytes) -> None:
    stage = Stage("a", "b")
    await stage.loaders()
    stage["b"].answers["/object_info"] = nonsense
    stage.passes(MAX_AGE_S)
    assert await stage.loaders() == ["a", "b"]


async def test_a_backend_that_turns_out_to_be_dead_leaves_at_once() -> None:
    stage = Stage("a", "b")
    stage.fleet.on_ejected = lambda _: stage.sources.changed()
    await stage.loaders()
    stage["a"].dies()
    stage.passes(MAX_AGE_S)
    assert await stage.loaders() == ["b"]
    assert not stage.backend("a").health.healthy


async def test_without_a_healthy_backend_the_usual_error_is_raised() -> None:
    stage = Stage("a")
    await stage.loaders()
    stage.goes("a")
    for ask in (stage.catalogs.object_info, stage.catalogs.features, stage.catalogs.system_stats):
        with pytest.raises(NoBackend):
            await ask()
    with pytest.raises(NoBackend):
        await stage.catalogs.object_info_of("KSampler")


async def test_where_nobody_ever_answered_the_backends_have_failed() -> None:
    stage = Stage("a", "b")
    for speaker in stage.speakers.values():
        speaker.talks_nonsense()
    with pytest.raises(UpstreamFailed):
        await stage.checkpoints()


async def test_a_folder_is_unknown_only_if_no_backend_knows_it() -> None:
    stage = Stage("a", "b")
    assert await stage.catalogs.models("loras") == Refusal(404, b"", None)
    stage["b"].answers["/models/loras"] = []
    stage.passes(MAX_AGE_S)
    assert value(await stage.catalogs.models("loras")) == []
    del stage["b"].answers["/models/loras"]
    stage.passes(MAX_AGE_S)
    assert await stage.catalogs.models("loras") == Refusal(404, b"", None)


async def test_names_go_out_encoded() -> None:
    stage = Stage("a")
    stage["a"].answers["/models/a%2Fb%3F"] = ["x"]
    assert value(await stage.catalogs.models("a/b?")) == ["x"]


async def test_one_backend_is_quoted_word_for_word() -> None:
    stage = Stage("a")
    stage["a"].answers["/models"] = b'[ "b",\n"a" ]'
    stage["a"].answers["/system_stats"] = b'{"devices": [], "system":{"b": 1, "a": 1e-05}}'
    stage["a"].answers["/features"] = b'{"b": 1,"a":2}'
    stage["a"].answers["/object_info"] = b'{"B": {"y":1, "x": 2}, "A": {}}'
    bodies = {
        "/models": await stage.catalogs.model_kinds(),
        "/system_stats": await stage.catalogs.system_stats(),
        "/features": await stage.catalogs.features(),
        "/object_info": await stage.catalogs.object_info(),
    }
    for path, found in bodies.items():
        assert isinstance(found, Document)
        assert found.body == stage["a"].answers[path]


# One class


async def test_one_class_is_asked_for_on_its_own() -> None:
    stage = Stage("a", "b")
    for name in "ab":
        await stage.sources.learn(stage.backend(name))
        stage[name].answers["/object_info/Loader"] = node(Loader=[name])
    assert value(await stage.catalogs.object_info_of("Loader")) == node(Loader=["a", "b"])
    await stage.catalogs.object_info_of("Loader")
    assert (stage.asked("/object_info/Loader"), stage.asked("/object_info")) == ([1, 1], [1, 1])


async def test_a_class_that_no_backend_has_is_not_asked_for() -> None:
    stage = Stage("a", "b")
    assert value(await stage.catalogs.object_info_of("None")) == {}
    assert stage.asked("/object_info/None") == [0, 0]
    stage.backend("b").catalog = None
    stage["a"].answers["/object_info/None"] = stage["b"].answers["/object_info/None"] = {}
    assert value(await stage.catalogs.object_info_of("None")) == {}


# Features and devices


async def test_features_are_the_home_backends_as_on_the_websocket() -> None:
    stage = Stage("a", "b")
    stage["a"].answers["/features"] = {"x": 1, "supports_progress_text_metadata": True}
    assert value(await stage.catalogs.features()) == {"x": 1}
    assert stage.asked("/features") == [1, 0]
    stage.goes("a")
    assert value(await stage.catalogs.features()) == {"supports_preview_metadata": True, "of": "b"}


async def test_a_server_too_old_for_features_refuses_as_it_does() -> None:
    stage = Stage("a", "b")
    del stage["a"].answers["/features"]
    assert await stage.catalogs.features() == Refusal(404, b"", None)
    assert stage.backend("a").features == {}


async def test_home_may_change_while_it_is_asked() -> None:
    stage = Stage("a", "b")
    stage["a"].dies()
    assert value(await stage.catalogs.features())["of"] == "b"


async def test_the_devices_are_those_of_all_healthy_backends() -> None:
    stage = Stage("a", "b", "c")
    stage["c"].answers["/system_stats"] = stage["b"].answers["/system_stats"]
    found = value(await stage.catalogs.system_stats())
    assert found["system"]["of"] == "a"
    assert [device["name"] for device in found["devices"]] == ["a", "b", "b"]
    stage.goes("b")
    assert len(value(await stage.catalogs.system_stats())["devices"]) == 2


# Who has a model


async def test_the_holders_of_a_model_are_found() -> None:
    stage = Stage("a", "b", "c")
    stage["c"].answers["/models/checkpoints"] = ["sub/b.safetensors", "b.safetensors"]
    holders = stage.catalogs.holders_of_model
    assert [b.id for b in await holders("checkpoints", "b.safetensors")] == ["b", "c"]
    assert [b.id for b in await holders("checkpoints", "sub/b.safetensors")] == ["c"]
    assert [b.id for b in await holders("checkpoints", "none.safetensors")] == ["a"]
    assert [b.id for b in await holders("unknown", "b.safetensors")] == ["a"]
    assert stage.asked("/models/checkpoints") == [1, 1, 1]


async def test_who_did_not_say_what_it_has_may_have_it() -> None:
    stage = Stage("a", "b", "c")
    stage["b"].talks_nonsense()
    assert [b.id for b in await stage.catalogs.holders_of_model("checkpoints", "c.safetensors")] == ["b", "c"]


async def test_files_are_told_apart_by_their_folder_and_previews_have_another_extension() -> None:
    stage = Stage("a", "b")
    path = "/experiment/models/loras"
    stage["a"].answers[path] = [{"name": "s\\x.v1.safetensors", "pathIndex": 0}]
    stage["b"].answers[path] = [{"name": "s\\x.v1.safetensors", "pathIndex": 1}, {"name": "y", "pathIndex": 0}]
    holders = stage.catalogs.holders_of_file
    assert [b.id for b in await holders("loras", "s\\x.v1.webp", 1)] == ["b"]
    assert [b.id for b in await holders("loras", "s\\x.v1.webp", 0)] == ["a"]
    assert [b.id for b in await holders("loras", "y", 0)] == ["b"]
    assert [b.id for b in await holders("loras", "s\\x.webp", 0)] == ["a"]


# Documents


async def test_a_document_is_compressed_once() -> None:
    document = Document(json.dumps(["x" * 100] * 100).encode())
    first, second = await asyncio.gather(document.gzipped(), document.gzipped())
    assert first is second
    assert gzip.decompress(first) == document.body
    assert document.is_compressible
    assert not Document(b"{}").is_compressible
    assert Document(b"{}").etag == Document(b"{}").etag != Document(b"[]").etag


async def test_a_long_list_is_merged_and_compressed_by_threads() -> None:
    stage = Stage("a", "b", is_virtual=False)
    names = [f"{number:05}.safetensors" for number in range(10_000)]
    stage["a"].answers["/models/checkpoints"], stage["b"].answers["/models/checkpoints"] = names[:6000], names[4000:]
    found = await stage.catalogs.models("checkpoints")
    assert value(found) == names
    assert isinstance(found, Document)
    assert json.loads(gzip.decompress(await found.gzipped())) == names


async def test_no_more_paths_are_remembered_than_are_meant_to_be() -> None:
    stage = Stage("a")
    await stage.sources.learn(stage.backend("a"))
    await stage.checkpoints()
    for number in range(MAX_PATHS):
        await stage.catalogs.models(f"made up {number}")
    assert stage.asked("/models/checkpoints") == [1]
    await stage.checkpoints()
    assert stage.asked("/models/checkpoints") == [2]
    assert stage.sources.age_s(stage.backend("a")) == 0, "what all rely on is never forgotten"
