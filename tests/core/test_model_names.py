"""One form for the names of models, whatever system writes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyproxy.core.choices import Choices
from comfyproxy.core.model_names import SUFFIXES, canonical, is_model

NAMES = st.builds(
    lambda parts, separators, suffix: "".join(a + b for a, b in zip(parts, separators, strict=False)) + "m" + suffix,
    st.lists(st.text(alphabet="aB .é", min_size=1, max_size=3), max_size=3),
    st.lists(st.sampled_from("/\\"), min_size=3, max_size=3),
    st.sampled_from([*SUFFIXES, *(suffix.upper() for suffix in SUFFIXES)]),
)


@given(NAMES)
def test_all_spellings_of_a_model_have_one_form(name: str) -> None:
    assert is_model(name)
    assert canonical(name) == canonical(name.replace("/", "\\")) == name.replace("\\", "/")
    assert canonical(canonical(name)) == canonical(name)


@given(st.text(max_size=30))
def test_what_names_no_model_stays_as_it_is(text: str) -> None:
    assert is_model(text) or canonical(text) == text


@pytest.mark.parametrize("text", ["", ".", "a\\b", "a\\x.txt", "safetensors", "x\\y.safetensors ", "\ud800\\x"])
def test_other_choices_are_told_apart_by_every_character(text: str) -> None:
    assert canonical(text) == text


@given(st.frozensets(NAMES, max_size=5), NAMES)
def test_a_list_spells_what_it_offers_and_nothing_else(values: frozenset[str], name: str) -> None:
    found = Choices.of(values).spelling(name)
    if canonical(name) in map(canonical, values):
        assert found in values
        assert found is not None
        assert canonical(found) == canonical(name)
    else:
        assert found is None
    assert all(Choices.of(values).spelling(value) == value for value in values)
