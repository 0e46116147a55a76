"""The history of a simulated server: what became of the last prompts.

Source: ComfyUI 0.25.0, `execution.py` (`PromptQueue.task_done`, `get_history`).
"""

import copy
from typing import Any

LIMIT = 10_000  # MAXIMUM_HISTORY_SIZE; it is checked before adding, so one more is kept

Entry = dict[str, Any]


class History:
    """Entries in the order in which the prompts ended; a repeated id keeps its place and gets the new entry."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, prompt_id: str, entry: Entry) -> None:
        """Add an entry, and forget the oldest if there are too many."""
        if len(self._entries) > LIMIT:
            del self._entries[next(iter(self._entries))]
        self._entries[prompt_id] = entry

    def entry(self, prompt_id: str) -> dict[str, Entry]:
        """Return the entry of one prompt under its id; empty for a prompt that waits, runs, or never was."""
        if prompt_id not in self._entries:
            return {}
        return {prompt_id: copy.deepcopy(self._entries[prompt_id])}

    def page(self, max_items: int | None = None, offset: int = -1) -> dict[str, Entry]:
        """Return `max_items` entries from `offset` on, or the last ones if `offset` is negative."""
        if offset < 0 and max_items is not None:
            offset = len(self._entries) - max_items
        found: dict[str, Entry] = {}
        for position, (prompt_id, entry) in enumerate(self._entries.items()):
            if position >= offset:
                found[prompt_id] = entry
                if max_items is not None and len(found) >= max_items:
                    break
        return found

    def clear(self) -> None:
        self._entries = {}

    def delete(self, prompt_id: Any) -> None:
        self._entries.pop(prompt_id, None)
