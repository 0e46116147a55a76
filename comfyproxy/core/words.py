"""Words that people write: which one was probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that was probably meant, if one is like it."""
    by_form = {other.lower().replace("-", "_"): other for other in known}
    found = get_close_matches(word.lower().replace("-", "_"), by_form, n=1)
    return by_form[found[0]] if found else None
