"""How a database becomes one of the present version, and which databases never do."""

import dataclasses
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from store_support import PAYLOAD, make_job

from comfyproxy.core.jobs import Job
from comfyproxy.core.ports import StoreError
from comfyproxy.store.rows import JOB_COLUMNS
from comfyproxy.store.schema import MIGRATIONS, check, migrate
from comfyproxy.store.sqlite import SqliteStore

PATH = Path("jobs.db")
FIRST = (("CREATE TABLE things (name TEXT)", "INSERT INTO things VALUES ('old')"),)
SECOND = (*FIRST, ("ALTER TABLE things ADD COLUMN size INTEGER", "UPDATE things SET size = 3"))


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        yield connection


def test_an_empty_database_gets_all_steps(db: sqlite3.Connection) -> None:
    assert migrate(db, PATH, migrations=SECOND) == 0
    assert check(db, PATH, newest=2) == 2
    assert db.execute("SELECT * FROM things").fetchall() == [("old", 3)]


def test_an_old_database_gets_the_steps_that_it_lacks(db: sqlite3.Connection) -> None:
    migrate(db, PATH, migrations=FIRST)
    db.execute("INSERT INTO things VALUES ('mine')")
    assert migrate(db, PATH, migrations=SECOND) == 1
    assert db.execute("SELECT * FROM things").fetchall() == [("old", 3), ("mine", 3)]
    assert migrate(db, PATH, migrations=SECOND) == 2


def test_a_step_that_fails_leaves_the_database_as_it_was(db: sqlite3.Connection) -> None:
    migrate(db, PATH, migrations=FIRST)
    with pytest.raises(sqlite3.OperationalError):
        migrate(db, PATH, migrations=(*SECOND, ("CREATE TABLE more (x)", "nonsense")))
    assert check(db, PATH, newest=1) == 1
    assert db.execute("SELECT * FROM things").fetchall() == [("old",)]
    assert not db.in_transaction


def test_a_newer_database_is_refused_with_what_to_do(db: sqlite3.Connection) -> None:
    migrate(db, PATH, migrations=SECOND)
    with pytest.raises(StoreError, match=r"jobs\.db was written by a newer comfyproxy .*install that release"):
        migrate(db, PATH, migrations=FIRST)


async def test_the_store_refuses_a_newer_database_and_leaves_it_alone(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    store = SqliteStore(path)
    await store.open()
    await store.insert(make_job("p"), PAYLOAD)
    await store.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    content = path.read_bytes()
    with pytest.raises(StoreError, match="newer comfyproxy"):
        await store.open()
    assert path.read_bytes() == content


def test_every_field_of_a_job_has_its_column() -> None:
    assert tuple(field.name for field in dataclasses.fields(Job)) == JOB_COLUMNS
