"""The backend's name in front of output files, and annotated names."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyproxy.core import outputs

NAMES = frozenset({"gpu-a", "gpu-b"})


def image(**changes: Any) -> dict[str, Any]:
    return {"filename": "x.png", "subfolder": "", "type": "output", **changes}


def test_an_output_gets_its_backend_in_front_of_the_subfolder() -> None:
    value = {"images": [image(), image(subfolder="sub"), image(type="temp", subfolder="a/b")]}
    assert outputs.prefix_outputs(value, "gpu-a") == {
        "images": [image(subfolder="gpu-a"), image(subfolder="gpu-a/sub"), image(type="temp", subfolder="gpu-a/a/b")]
    }


def test_other_values_of_an_output_stay_as_they_are() -> None:
    value: dict[str, Any] = {
        "gifs": [image(format="video/h264-mp4", frame_rate=8.0, workflow="x.png", fullpath="/out/x.png")],
        "text": ["gpu", 1, None, True, 1.5],
        "animated": [True],
    }
    prefixed = outputs.prefix_outputs(value, "gpu-a")
    assert prefixed["gifs"] == [{**value["gifs"][0], "subfolder": "gpu-a"}]
    assert list(prefixed) == list(value)
    assert prefixed["text"] is value["text"]


def test_outputs_of_a_whole_history_entry_are_found_at_any_depth() -> None:
    value = {"3": {"images": [image()]}, "7": {"deep": [[{"er": image(subfolder="s")}]]}}
    prefixed = outputs.prefix_outputs(value, "b")
    assert prefixed["3"]["images"][0]["subfolder"] == "b"
    assert prefixed["7"]["deep"][0][0]["er"]["subfolder"] == "b/s"


def test_a_backslash_in_a_subfolder_of_windows_survives() -> None:
    assert outputs.prefix_outputs(image(subfolder="a\\b"), "w")["subfolder"] == "w/a\\b"
    assert outputs.split_subfolder("w/a\\b", {"w"}) == ("w", "a\\b")


@pytest.mark.parametrize(
    "value",
    [
        image(type="input"),
        image(type=None),
        image(type=["output"]),
        image(filename=None),
        image(subfolder=None),
        {"filename": "x.png", "type": "output"},
        "output",
        None,
        [1, {"type": "output"}],
        {},
    ],
)
def test_what_names_no_output_is_returned_itself(value: Any) -> None:
    assert outputs.prefix_outputs(value, "gpu-a") is value


def test_nothing_is_changed_in_place() -> None:
    value = {"images": [image()], "a": [image(type="input")]}
    before = copy.deepcopy(value)
    prefixed = outputs.prefix_outputs(value, "gpu-a")
    assert value == before
    assert prefixed["a"] is value["a"]


@pytest.mark.parametrize(
    ("subfolder", "expected"),
    [
        ("gpu-a", ("gpu-a", "")),
        ("gpu-a/sub", ("gpu-a", "sub")),
        ("gpu-a/gpu-b/sub", ("gpu-a", "gpu-b/sub")),
        ("gpu-a\\sub", ("gpu-a", "sub")),
        ("gpu-a/", ("gpu-a", "")),
        ("gpu-ab/sub", (None, "gpu-ab/sub")),
        ("sub/gpu-a", (None, "sub/gpu-a")),
        ("/gpu-a", (None, "/gpu-a")),
        ("", (None, "")),
    ],
)
def test_a_subfolder_is_split_at_a_known_backend_only(subfolder: str, expected: tuple[str | None, str]) -> None:
    assert outputs.split_subfolder(subfolder, NAMES) == expected


@given(st.text(), st.sampled_from(sorted(NAMES)))
def test_splitting_takes_back_what_prefixing_did(subfolder: str, backend: str) -> None:
    assert outputs.split_subfolder(outputs.add_prefix(subfolder, backend), NAMES) == (backend, subfolder)


def test_a_path_that_is_only_a_backends_name_is_a_file_of_that_name() -> None:
    assert outputs.split_path("gpu-a", NAMES) == (None, "gpu-a")
    assert outputs.split_path("gpu-a/x.png", NAMES) == ("gpu-a", "x.png")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("x.png [output]", ("x.png", "output")),
        ("gpu-a/sub/x.png [output]", ("gpu-a/sub/x.png", "output")),
        ("x.png [temp]", ("x.png", "temp")),
        ("x y.png [input]", ("x y.png", "input")),
        ("x.png", ("x.png", None)),
        ("x.png[output]", ("x.png[output]", None)),
        ("x.png [other]", ("x.png [other]", None)),
        ("a prompt with [brackets]", ("a prompt with [brackets]", None)),
    ],
)
def test_an_annotated_name_is_parsed_and_put_together_again(value: str, expected: tuple[str, str | None]) -> None:
    assert outputs.parse_annotated(value) == expected
    assert outputs.format_annotated(*expected) == value


def test_a_name_is_split_off_its_subfolder_at_either_separator() -> None:
    assert outputs.split_name("a/b/x.png") == ("a/b", "x.png")
    assert outputs.split_name("a\\x.png") == ("a", "x.png")
    assert outputs.split_name("x.png") == ("", "x.png")
    assert outputs.join_name(*outputs.split_name("a/b/x.png")) == "a/b/x.png"
