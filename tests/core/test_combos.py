"""Which inputs are lists anywhere in the fleet, as catalogs come and go."""

import gc
import weakref
from typing import Any

from graphs_support import as_json, catalog_of, loader
from hypothesis import given
from hypothesis import strategies as st

from comfyproxy.core import catalog
from comfyproxy.core.combos import Combos
from comfyproxy.core.jobs import BackendId

A, B = BackendId("a"), BackendId("b")


def test_the_lists_of_all_backends_count() -> None:
    combos = Combos()
    combos.note(A, catalog_of(Load=loader(x=["m"]), Other=loader()))
    combos.note(B, catalog_of(Load=loader(y=["m"]), More=loader(z=[])))
    assert combos == {"Load": {"x", "y"}, "More": {"z"}}
    combos.note(B, None)
    assert combos == {"Load": {"x"}}
    combos.note(A, None)
    assert (len(combos), combos.get("Load", ())) == (0, ())


def test_a_catalog_that_two_backends_have_is_there_until_both_have_lost_it() -> None:
    combos, both = Combos(), catalog_of(Load=loader(x=["m"]))
    for backend in (A, B, A):
        combos.note(backend, both)
    combos.note(A, None)
    assert combos == {"Load": {"x"}}
    combos.note(B, catalog_of())
    assert not combos


def test_equal_catalogs_with_other_lists_are_told_apart() -> None:
    combos = Combos()
    one, other = catalog_of(Load=loader(x=["m"])), catalog_of(Load=loader(y=["m"]))
    assert one == other, "by their classes"
    combos.note(A, one)
    combos.note(A, other)
    assert combos == {"Load": {"y"}}


def test_catalogs_that_nobody_has_any_more_are_let_go_of() -> None:
    combos, lost = Combos(), catalog_of(Load=loader(x=["m"]))
    combos.note(A, lost)
    combos.note(A, None)
    seen = weakref.ref(lost)
    del lost
    gc.collect()
    assert seen() is None


_CLASS = st.dictionaries(st.sampled_from("xyz"), st.lists(st.sampled_from("mn"), max_size=1), max_size=2)
_INFO = st.dictionaries(st.sampled_from(["A", "B", "C"]), _CLASS, max_size=3)


@given(st.lists(_INFO, min_size=1, max_size=4), st.data())
def test_after_any_changes_it_is_the_union_of_what_there_is(infos: list[Any], data: st.DataObject) -> None:
    shared = catalog.Shared()
    known = [
        catalog.parse(catalog_json, shared=shared)
        for catalog_json in (as_json({name: loader(**lists) for name, lists in info.items()}) for info in infos)
    ]
    combos = Combos()
    there: dict[BackendId, int | None] = {}
    for _ in range(data.draw(st.integers(0, 8))):
        backend = data.draw(st.sampled_from([A, B, BackendId("c")]))
        choice = data.draw(st.none() | st.integers(0, len(known) - 1))
        combos.note(backend, None if choice is None else known[choice])
        there[backend] = choice
        expected: dict[str, set[str]] = {}
        for number in there.values():
            for name, lists in infos[number].items() if number is not None else ():
                if lists:
                    expected.setdefault(name, set()).update(lists)
        assert combos == expected
