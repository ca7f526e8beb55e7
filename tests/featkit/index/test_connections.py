"""The pool of connections follows its file, and SQLite's errors become one sentence."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from featkit.errors import EnvironmentProblem, FeatkitError, InputError
from featkit.folders import CATALOGUE_FILE
from featkit.index.connections import Connections, explained
from featkit.index.tables import DamagedCatalogue
from tests.sentences import refused


@pytest.fixture
def connections(photos: Path) -> Connections:
    """Connections to the catalogue of an index."""
    return Connections(photos / CATALOGUE_FILE)


def test_a_returned_connection_is_used_again(connections: Connections) -> None:
    first, signature = connections.borrow()
    second, _ = connections.borrow()
    assert second is not first
    connections.give_back(first, signature)
    assert connections.borrow()[0] is first
    first.close()
    second.close()


def test_a_replaced_file_gets_a_new_connection(connections: Connections) -> None:
    first, signature = connections.borrow()
    connections.give_back(first, signature)
    copy = connections.path.with_name("copy")
    shutil.copyfile(connections.path, copy)
    copy.replace(connections.path)
    second, new_signature = connections.borrow()
    assert second is not first
    assert new_signature != signature
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        first.execute("SELECT 1")
    second.close()


def test_a_connection_for_reading_cannot_write(connections: Connections) -> None:
    connection, _ = connections.borrow()
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("DELETE FROM items")
    connection.close()


def test_a_closed_pool_closes_what_comes_back(connections: Connections) -> None:
    connection, signature = connections.borrow()
    connections.close()
    connections.give_back(connection, signature)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")


def sqlite_error(code: int) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError("what SQLite reports")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (sqlite_error(sqlite3.SQLITE_FULL), EnvironmentProblem, "No space left to write i;"),
        (sqlite_error(sqlite3.SQLITE_CANTOPEN), EnvironmentProblem, "i cannot be opened: what"),
        (sqlite_error(sqlite3.SQLITE_READONLY), EnvironmentProblem, "you may read and write it"),
        (sqlite_error(sqlite3.SQLITE_BUSY_SNAPSHOT), EnvironmentProblem, "right now: what"),
        (sqlite_error(sqlite3.SQLITE_CORRUPT), InputError, "damaged or not a catalogue (what"),
        (sqlite_error(0), InputError, "damaged or not a catalogue (what"),
        (DamagedCatalogue("an id is odd"), InputError, "damaged or not a catalogue (an id is odd)"),
    ],
)
def test_errors_of_sqlite_become_one_sentence(
    error: Exception, kind: type[FeatkitError], words: str
) -> None:
    with refused(words, error=kind), explained(Path("i/catalogue.sqlite")):
        raise error


def test_mistakes_in_calling_sqlite_are_not_explained() -> None:
    misuse = sqlite_error(sqlite3.SQLITE_MISUSE)
    with pytest.raises(sqlite3.DatabaseError), explained(Path("i/catalogue.sqlite")):
        raise misuse
