"""Finding the inputs that name files, and writing other names in their place."""

import json
import time
from typing import Any

import pytest

from comfyproxy.core.files import FileRef
from comfyproxy.core.graph import Evidence, FileInput, file_inputs, rewrite

NAMES = frozenset({"gpu-a", "gpu-b"})
UPLOADS = frozenset({("LoadImage", "image"), ("LoadVideo", "file")})


def graph_of(value: Any, *, class_type: str = "LoadImage", input_name: str = "image") -> bytes:
    return json.dumps({"1": {"class_type": class_type, "inputs": {input_name: value}}}).encode()


def found_in(graph: bytes) -> list[FileInput]:
    return file_inputs(graph, names=NAMES, upload_inputs=UPLOADS)


@pytest.mark.parametrize(
    ("value", "ref", "backend"),
    [
        ("x.png", FileRef("x.png", "", "input"), None),
        ("sub/x.png", FileRef("x.png", "sub", "input"), None),
        ("sub\\x.png", FileRef("x.png", "sub", "input"), None),
        ("x.png [output]", FileRef("x.png", "", "output"), None),
        ("gpu-a/x.png [output]", FileRef("x.png", "", "output"), "gpu-a"),
        ("gpu-a/a/b/x.png [temp]", FileRef("x.png", "a/b", "temp"), "gpu-a"),
        ("gpu-a\\x.png [output]", FileRef("x.png", "", "output"), "gpu-a"),
        ("other/x.png [output]", FileRef("x.png", "other", "output"), None),
        ("gpu-a/x.png [input]", FileRef("x.png", "gpu-a", "input"), None),
        ("gpu-a/x.png", FileRef("x.png", "gpu-a", "input"), None),
        ("写真 (1).png", FileRef("写真 (1).png", "", "input"), None),
    ],
)
def test_an_upload_input_names_a_file(value: str, ref: FileRef, backend: str | None) -> None:
    (found,) = found_in(graph_of(value))
    assert (found.ref, found.backend, found.value) == (ref, backend, value)
    assert (found.node_id, found.input_name) == ("1", "image")


def test_an_annotated_name_counts_in_any_node() -> None:
    (found,) = found_in(graph_of("gpu-b/x.latent [output]", class_type="Custom", input_name="whatever"))
    assert found.evidence is Evidence.ANNOTATED
    assert found.backend == "gpu-b"


def test_a_plain_name_elsewhere_only_looks_like_a_file() -> None:
    (found,) = found_in(graph_of("sd15.safetensors", class_type="CheckpointLoaderSimple", input_name="ckpt_name"))
    assert found.evidence is Evidence.LOOKS


@pytest.mark.parametrize(
    "value",
    [
        "a photo of a cat, two lines\nand an end.png",
        "no extension",
        "none",
        "",
        "../x.png",
        "a/../../x.png [output]",
        "/etc/x.png",
        "sub/ [output]",
        5,
        None,
        True,
        ["4", 0],
        {"__value__": ["x.png"]},
    ],
)
def test_other_values_name_no_file(value: Any) -> None:
    assert found_in(graph_of(value)) == []


def test_annotated_names_inside_a_composite_value_are_found_and_replaced() -> None:
    value = {"image": "gpu-a/t/x.png [temp]", "mask": "m.png [temp]", "list": [1, "y.png [output]", "z.png"]}
    graph = graph_of(value, class_type="Load3D")
    found = found_in(graph)
    assert [item.place for item in found] == [
        ("1", "image", "image"),
        ("1", "image", "mask"),
        ("1", "image", "list", 1),
    ]
    rewritten = rewrite(graph, {item.place: f"new{index}" for index, item in enumerate(found)})
    assert json.loads(rewritten)["1"]["inputs"]["image"] == {
        "image": "new0",
        "mask": "new1",
        "list": [1, "new2", "z.png"],
    }


@pytest.mark.parametrize(
    "graph", [b"", b"[]", b"null", b"{", b'{"1": 5}', b'{"1": {"inputs": []}}', b'{"1": {"class_type": null}}', b"\xff"]
)
def test_what_is_no_graph_names_no_files(graph: bytes) -> None:
    assert found_in(graph) == []


def test_a_rewritten_graph_keeps_every_other_byte() -> None:
    graph = (
        b'{"9": {"class_type":"KSampler","inputs":{"seed":18446744073709551615,"cfg":8.0,"x":1e2,"y":1.10}},'
        b'"1": {"inputs":{"upload":"image","image":"x.png [output]"},"class_type":"LoadImage",'
        b'"_meta":{"title":"L \\u00e9"}}}'
    )
    rewritten = rewrite(graph, {("1", "image"): 'é "new".png'})
    assert b'{"class_type":"KSampler","inputs":{"seed":18446744073709551615,"cfg":8.0,"x":1e2,"y":1.10}}' in rewritten
    assert b'"_meta":{"title":"L \\u00e9"}' in rewritten
    after, before = json.loads(rewritten), json.loads(graph)
    assert after["1"]["inputs"].pop("image") == 'é "new".png'
    before["1"]["inputs"].pop("image")
    assert after == before
    assert list(after) == ["9", "1"]
    assert list(after["1"]) == ["inputs", "class_type", "_meta"]


def test_a_graph_without_replacements_is_itself() -> None:
    graph = graph_of("x.png")
    assert rewrite(graph, {}) is graph


def test_a_graph_with_numbers_that_only_python_knows_is_read_and_rewritten() -> None:
    graph = (
        b'{"1": {"class_type": "LoadImage", "inputs": {"image": "x.png [output]", "strength": NaN, "s": "\\ud800"}}}'
    )
    (found,) = found_in(graph)
    assert found.ref == FileRef("x.png", "", "output")
    rewritten = rewrite(graph, {found.place: "y.png"})
    assert b'"image": "y.png", "strength": NaN, "s": "\\ud800"' in rewritten


def test_a_big_graph_costs_milliseconds() -> None:
    node = {
        "class_type": "KSampler",
        "inputs": {f"i{n}": [str(n), 0] for n in range(20)} | {"seed": 1, "name": "euler"},
    }
    graph = json.dumps({str(n): node for n in range(5000)}).encode()
    begun = time.perf_counter()
    assert found_in(graph) == []
    assert time.perf_counter() - begun < 2
