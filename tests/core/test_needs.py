"""What a job needs, and of which kind it is, as its graph tells."""

import gc
import json
from typing import Any

import pytest
from graphs_support import GRAPHS, ODD_GRAPHS, as_json, prompt
from hypothesis import given
from hypothesis import strategies as st

from comfyproxy.core.catalog import classes_of
from comfyproxy.core.jobs import BackendId
from comfyproxy.core.needs import ANYWHERE, Needs, NeedsPool, Reading, canonical, read

COMBOS = {
    "Loader": frozenset({"ckpt_name", "weight_dtype"}),
    "KSampler": frozenset({"sampler_name", "scheduler"}),
    "LoadLatent": frozenset({"latent"}),
    "A": frozenset({"x", "scheduler"}),
    "B": frozenset({"y"}),
}


def needs_of(*steps: tuple[str, dict[str, Any]]) -> Needs:
    return read(prompt(*steps), COMBOS).needs


def kind_of(*steps: tuple[str, dict[str, Any]]) -> str:
    return read(prompt(*steps), COMBOS).kind


def test_classes_and_chosen_values_and_the_models_among_them_are_needed() -> None:
    needs = needs_of(
        ("Loader", {"ckpt_name": "SDXL\\a.safetensors", "weight_dtype": "fp8\\x"}),
        ("Loader", {"ckpt_name": "b.GGUF"}),
        ("Save", {"prefix": "c.safetensors"}),
    )
    assert needs.classes == {"Loader", "Save"}
    assert needs.choices == {
        ("Loader", "ckpt_name", "SDXL/a.safetensors"),
        ("Loader", "weight_dtype", "fp8\\x"),
        ("Loader", "ckpt_name", "b.GGUF"),
    }
    assert needs.models == {"SDXL/a.safetensors", "b.GGUF"}


@pytest.mark.parametrize("value", [["1", 0], 5, None, True, {"__value__": "a.ckpt"}, [["a.ckpt"]]])
def test_what_is_no_literal_string_is_no_choice(value: Any) -> None:
    assert needs_of(("Loader", {"ckpt_name": value})) == Needs(classes=frozenset({"Loader"}))


@pytest.mark.parametrize("value", ["x.latent", "sub/x.PNG", "x.mp4 [output]", "x.jpeg [input]"])
def test_files_that_the_proxy_brings_along_are_no_needs(value: str) -> None:
    assert needs_of(("LoadLatent", {"latent": value})).choices == frozenset()


def test_needs_are_equal_for_either_spelling_and_differ_by_pin_and_capabilities() -> None:
    linux, windows = (prompt(("Loader", {"ckpt_name": name})) for name in ("x/a.pt", "x\\a.pt"))
    assert read(linux, COMBOS) == read(windows, COMBOS)
    asked = read(linux, COMBOS, capabilities=frozenset({"video"}), pinned=BackendId("a")).needs
    assert asked.capabilities == {"video"}
    assert asked.pinned == "a"
    assert asked != read(linux, COMBOS).needs


def test_of_a_fleet_that_nothing_is_known_of_models_are_told_by_their_names() -> None:
    needs = read(prompt(("Loader", {"ckpt_name": "x\\a.pt", "sampler_name": "euler"})), {}).needs
    assert needs.choices == {("Loader", "ckpt_name", "x/a.pt")}
    assert needs.models == {"x/a.pt"}


@given(GRAPHS)
def test_the_classes_are_those_of_the_graph(graph: Any) -> None:
    assert read(as_json(graph), COMBOS).needs.classes == set(classes_of(as_json(graph)).values()) - {""}


@given(ODD_GRAPHS)
def test_no_graph_is_too_odd(graph: Any) -> None:
    reading = read(as_json(graph), COMBOS, share=NeedsPool().share)
    assert reading.needs.models <= {value for _, _, value in reading.needs.choices}
    assert all(canonical(value) == value for _, _, value in reading.needs.choices)
    assert reading == read(json.dumps(graph, indent=1).encode(), COMBOS)


@given(st.binary(max_size=20))
def test_what_is_no_json_needs_nothing(raw: bytes) -> None:
    assert read(raw, COMBOS).needs == ANYWHERE


@pytest.mark.parametrize("graph", [b'{"1": {"class_type": 5}}', b'{"1": null}', b"[]", b'{"1": {}, "x": 5}', b"5"])
def test_what_is_no_graph_needs_nothing(graph: bytes) -> None:
    assert read(graph, COMBOS) == read(b"{}", COMBOS) == Reading(ANYWHERE, read(b"", {}).kind)


def test_a_graph_nested_to_the_limit_is_no_failure() -> None:
    for depth in (100, *range(850, 1000), 100_000):
        value = b"[" * depth + b"]" * depth
        graph = b'{"1": {"class_type": "A", "inputs": {"x": ' + value + b"}}}"
        assert read(graph, COMBOS).needs.classes in ({"A"}, frozenset())


def test_equal_needs_are_one_object_for_as_long_as_somebody_has_them() -> None:
    pool = NeedsPool()
    graph = prompt(("Loader", {"ckpt_name": "a.pt"}))
    first, second = (read(graph, COMBOS, share=pool.share).needs for _ in range(2))
    assert first is second
    assert read(graph, COMBOS, pinned=BackendId("a"), share=pool.share).needs is not first
    del first, second
    gc.collect()
    assert not pool._known


# The kind

SAMPLER: dict[str, Any] = {"seed": 1, "steps": 20, "cfg": 7.0, "sampler_name": "euler", "model": ["0", 0]}


def test_seeds_texts_uploads_and_the_order_of_nodes_do_not_matter_for_the_kind() -> None:
    one = kind_of(("KSampler", SAMPLER), ("Text", {"text": "a cat"}), ("LoadImage", {"image": "a.png"}))
    other = kind_of(
        ("LoadImage", {"image": "b.png"}),
        ("KSampler", {**SAMPLER, "seed": 2, "steps": 20.0}),
        ("Text", {"text": "a dog"}),
    )
    assert one == other


@pytest.mark.parametrize(
    "change",
    [{"steps": 21}, {"sampler_name": "heun"}, {"width": 512}, {"denoise": 0.5}, {"scheduler": "karras"}],
)
def test_what_makes_a_node_slower_makes_another_kind(change: dict[str, Any]) -> None:
    assert kind_of(("KSampler", {**SAMPLER, **change})) != kind_of(("KSampler", SAMPLER))


def test_models_and_the_number_of_nodes_make_another_kind() -> None:
    kinds = {
        kind_of(("Loader", {"ckpt_name": "a.pt"})),
        kind_of(("Loader", {"ckpt_name": "b.pt"})),
        kind_of(("Loader", {"ckpt_name": "a.pt"}), ("Loader", {"ckpt_name": "a.pt"})),
        kind_of(("KSampler", {"steps": 1}), ("KSampler", {"steps": 2})),
        kind_of(("KSampler", {"steps": 2}), ("KSampler", {"steps": 2})),
    }
    assert len(kinds) == 5


def test_a_link_or_a_switch_is_no_number_and_any_number_is_one() -> None:
    plain = kind_of(("KSampler", {}))
    assert {kind_of(("KSampler", {"steps": value})) for value in (["1", 0], True, "20", None)} == {plain}
    assert len({kind_of(("KSampler", {"steps": value})) for value in (float("nan"), 10**400, 1e30)} | {plain}) == 4
