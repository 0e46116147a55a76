"""What the store says to the database about jobs. Each function is one step of a transaction."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Final

from comfyproxy.core.jobs import Job, Payload
from comfyproxy.core.ports import JobSummary
from comfyproxy.store.rows import (
    JOB_COLUMNS,
    Row,
    from_text,
    integer,
    pack,
    text,
    to_job,
    to_summary,
    unpack,
)

_COLUMNS: Final = ", ".join(JOB_COLUMNS)
_INSERT: Final = f"INSERT INTO jobs ({_COLUMNS}, settled) VALUES ({'?, ' * len(JOB_COLUMNS)}?)"
_SET: Final = ", ".join(f"{column} = ?" for column in JOB_COLUMNS)

_SUMMARY: Final = "h.prompt_id, h.status, h.workflow_id, h.created_ms, h.duration_ms, d.item"
_SORTED_BY: Final = {"created_at": "created_ms", "execution_duration": "duration_ms"}


# Unfinished jobs


def insert(db: Connection, row: Row, payload: Payload) -> None:
    """Write a new job; another of the same id is forgotten."""
    _forget(db, _find(db, row[0]))
    job = db.execute(_INSERT, (*row, None)).lastrowid
    db.execute("INSERT INTO payloads VALUES (?, ?, ?, ?)", (job, payload.graph, payload.extra_data, payload.rest))


def update(db: Connection, row: Row) -> None:
    """Write an unfinished job's row. One that has ended or is gone stays so: it has no payload to go on with."""
    db.execute(f"UPDATE jobs SET {_SET} WHERE prompt_id = ? AND settled IS NULL", (*row, row[0]))


def discard(db: Connection, prompt_id: str) -> None:
    """Remove an unfinished job."""
    found = _find(db, text(prompt_id))
    if found is not None and found.settled is None:
        _forget(db, found)


def job(db: Connection, prompt_id: str) -> Job | None:
    """Return a job in any state."""
    row = db.execute(f"SELECT {_COLUMNS} FROM jobs WHERE prompt_id = ?", (text(prompt_id),)).fetchone()
    return None if row is None else to_job(row)


def unfinished(db: Connection) -> list[Job]:
    """Return the unfinished jobs by number, equal ones in the order in which they came; NaN comes first."""
    rows = db.execute(f"SELECT {_COLUMNS} FROM jobs WHERE settled IS NULL ORDER BY number, id")
    return [to_job(row) for row in rows]


def payloads(db: Connection, prompt_ids: Iterable[str]) -> dict[str, Payload]:
    """Return the payloads of unfinished jobs."""
    found = {}
    for prompt_id in prompt_ids:
        row = db.execute(
            "SELECT p.graph, p.extra_data, p.rest FROM jobs j JOIN payloads p ON p.job = j.id WHERE j.prompt_id = ?",
            (text(prompt_id),),
        ).fetchone()
        if row is not None:
            found[prompt_id] = Payload(graph=row[0], extra_data=row[1], rest=row[2])
    return found


# Settled jobs


def settle(db: Connection, row: Row, end: tuple[bytes, JobSummary] | None, max_history: int) -> None:
    """Write a job that has ended, with its entry and summary if it has them; the oldest make room."""
    found = _find(db, row[0])
    settled = db.execute("SELECT coalesce(max(settled), 0) + 1 FROM jobs WHERE settled IS NOT NULL").fetchone()[0]
    if found is None:
        db.execute(_INSERT, (*row, settled))
    else:
        _forget_end(db, found)
        db.execute(f"UPDATE jobs SET {_SET}, settled = ? WHERE id = ?", (*row, settled, found.id))
        db.execute("DELETE FROM payloads WHERE job = ?", (found.id,))
    if end is not None:
        entry, summary = end
        db.execute(
            "INSERT INTO history VALUES (?, ?, ?, ?, ?, ?)",
            (
                settled,
                row[0],
                summary.status,
                text(summary.workflow_id),
                integer(summary.created_ms),
                integer(summary.duration_ms),
            ),
        )
        db.execute("INSERT INTO documents VALUES (?, ?, ?, ?)", (settled, summary.item, *pack(entry)))
    trim(db, max_history)


def trim(db: Connection, max_history: int) -> None:
    """Forget the oldest settled jobs beyond `max_history`."""
    newest_too_old = db.execute(
        "SELECT settled FROM jobs WHERE settled IS NOT NULL ORDER BY settled DESC LIMIT 1 OFFSET ?", (max_history,)
    ).fetchone()
    if newest_too_old is not None:
        for table in ("documents", "history", "jobs"):
            db.execute(f"DELETE FROM {table} WHERE settled <= ?", newest_too_old)


def delete_history(db: Connection, prompt_ids: Iterable[str]) -> None:
    """Forget settled jobs."""
    for prompt_id in prompt_ids:
        found = _find(db, text(prompt_id))
        if found is not None and found.settled is not None:
            _forget(db, found)


def clear_history(db: Connection) -> None:
    """Forget all settled jobs."""
    db.execute("DELETE FROM documents")
    db.execute("DELETE FROM history")
    db.execute("DELETE FROM jobs WHERE settled IS NOT NULL")


def history_entry(db: Connection, prompt_id: str) -> bytes | None:
    """Return a settled job's entry."""
    row = db.execute(
        "SELECT d.packed, d.entry FROM jobs j JOIN documents d ON d.settled = j.settled WHERE j.prompt_id = ?",
        (text(prompt_id),),
    ).fetchone()
    return None if row is None else unpack(*row)


def history(db: Connection, max_items: int | None, offset: int) -> list[tuple[str, bytes]]:
    """Return (prompt_id, entry), oldest first; see the protocol for the arguments."""
    newest_first = offset < 0 and max_items is not None
    chosen = db.execute(
        f"SELECT settled, prompt_id FROM history ORDER BY settled {'DESC' if newest_first else 'ASC'} LIMIT ? OFFSET ?",
        (_limit(max_items), integer(max(0, offset))),
    ).fetchall()
    found = []
    for settled, prompt_id in reversed(chosen) if newest_first else chosen:
        row = db.execute("SELECT packed, entry FROM documents WHERE settled = ?", (settled,)).fetchone()
        found.append((from_text(prompt_id), unpack(*row)))
    return found


def summary(db: Connection, prompt_id: str) -> JobSummary | None:
    """Return a settled job's summary."""
    row = db.execute(
        f"""SELECT {_SUMMARY} FROM jobs j JOIN history h ON h.settled = j.settled
            JOIN documents d ON d.settled = j.settled WHERE j.prompt_id = ?""",
        (text(prompt_id),),
    ).fetchone()
    return None if row is None else to_summary(row)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What `summaries` is asked for; see the protocol."""

    statuses: frozenset[str]
    workflow_id: str | None
    sort_by: str
    descending: bool
    limit: int | None
    offset: int


def summaries(db: Connection, page: Page) -> tuple[list[JobSummary], int]:
    """Return one page and how many there are; equal ones in the order in which they ended, whatever the direction."""
    statuses: Sequence[str] = sorted(page.statuses)
    where, values = f"status IN ({', '.join('?' * len(statuses))})", [*map(text, statuses)]
    if page.workflow_id is not None:
        where, values = f"{where} AND workflow_id = ?", [*values, text(page.workflow_id)]
    column, direction = _SORTED_BY[page.sort_by], "DESC" if page.descending else "ASC"
    (total,) = db.execute(f"SELECT count(*) FROM history WHERE {where}", values).fetchone()
    rows = db.execute(
        f"""SELECT {_SUMMARY}
            FROM (
                SELECT settled FROM history WHERE {where} ORDER BY {column} {direction}, settled LIMIT ? OFFSET ?
            ) page
            JOIN history h ON h.settled = page.settled JOIN documents d ON d.settled = page.settled
            ORDER BY h.{column} {direction}, h.settled""",
        [*values, _limit(page.limit), integer(max(0, page.offset))],
    )
    return [to_summary(row) for row in rows], total


def _limit(wanted: int | None) -> int:
    return -1 if wanted is None else integer(max(0, wanted))  # to SQLite, -1 means all


@dataclass(frozen=True, slots=True)
class _Found:
    id: int
    settled: int | None


def _find(db: Connection, prompt_id: str | bytes | None) -> _Found | None:
    row = db.execute("SELECT id, settled FROM jobs WHERE prompt_id = ?", (prompt_id,)).fetchone()
    return None if row is None else _Found(*row)


def _forget_end(db: Connection, found: _Found) -> None:
    if found.settled is not None:
        db.execute("DELETE FROM documents WHERE settled = ?", (found.settled,))
        db.execute("DELETE FROM history WHERE settled = ?", (found.settled,))


def _forget(db: Connection, found: _Found | None) -> None:
    """Remove all that is known of a job."""
    if found is not None:
        _forget_end(db, found)
        db.execute("DELETE FROM payloads WHERE job = ?", (found.id,))
        db.execute("DELETE FROM jobs WHERE id = ?", (found.id,))
