"""SQL -> rows: over files by DuckDB, over a database by SQLAlchemy or, for its own files, by DuckDB.

None of DuckDB's extensions is fetched at run time: addresses in a query are read through fsspec's drivers.
"""

from __future__ import annotations

import inspect
import os
import re
import sqlite3
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from coldframe.errors import InvalidArgument
from indexer.corpus.articles import Columns, Rows, check_header
from indexer.corpus.formats import BATCH_ROWS, arrow_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import URL, Connection

    _Rows = Callable[[Columns], Rows]
    _Beside = Callable[..., Any]

_DUCKDB: dict[str, str | bool | int | float | list[str]] = {
    "threads": 1,  # rows come in the same order every time, and few are held
    "memory_limit": "1GB",  # what does not fit, such as the rows that ORDER BY sorts, goes to the disk
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "python_enable_replacements": False,  # a table is not a Python variable
}
# What a URL without a driver's name means, and the package that brings it.
_DRIVERS = {
    "postgresql": ("postgresql+psycopg", "psycopg[binary]"),
    "postgres": ("postgresql+psycopg", "psycopg[binary]"),
    "mysql": ("mysql+pymysql", "pymysql"),
    "mariadb": ("mariadb+pymysql", "pymysql"),
}
# A session keeps the server's zone otherwise, and gives times in it that do not say so: MySQL's TIMESTAMP, for one.
_IN_UTC = {
    "postgresql": "SET TIME ZONE 'UTC'",
    "mysql": "SET time_zone = '+00:00'",
    "mariadb": "SET time_zone = '+00:00'",
}


def find_query(query: str, database: str | None) -> tuple[str, _Rows]:
    """The location of a query, and how to read its rows.

    Raises InvalidArgument for SQL that DuckDB cannot make sense of, a database that cannot be reached, or a driver that
    is not installed.
    """
    if not query.strip():
        raise _bad_query("it is empty")
    path = None if database is None else _duckdb_file(database)
    if database is None or path is not None:
        with _duckdb(query, path):
            return f"query {query}" if path is None else f"{path}, query {query}", partial(_read_duckdb, query, path)
    url = _url(database)
    with _sqlalchemy(url):
        return f"{_public(url)}, query {query}", partial(_read_sqlalchemy, query, url)


def _bad_query(reason: object) -> InvalidArgument:
    return InvalidArgument(f"the query cannot be run: {reason}", field="query")


def _bad_database(database: str, reason: object) -> InvalidArgument:
    return InvalidArgument(f"--database {database}: {reason}", field="database")


# --- DuckDB ----------------------------------------------------------------------------------------------------------


def _read_duckdb(query: str, database: Path | None, columns: Columns) -> Rows:
    with _duckdb(query, database) as (relation, beside):
        check_header("the query's result", relation.columns, columns, field="query")
        reader = beside(relation.to_arrow_reader, BATCH_ROWS)
        yield from arrow_rows(iter(lambda: beside(next, reader, None), None))


@contextmanager
def _duckdb(query: str, database: Path | None) -> Iterator[tuple[Any, _Beside]]:
    """The relation that a query stands for, and what is to call it; its rows are computed as they are taken."""
    import duckdb
    import pyarrow as pa

    with tempfile.TemporaryDirectory(prefix="coldframe-") as spill:
        config = {**_DUCKDB, "temp_directory": spill}
        unread: dict[str, str] = {}
        try:
            with (
                duckdb.connect(
                    str(database or ":memory:"), read_only=database is not None, config=config
                ) as connection,
                _in_a_thread(connection) as beside,
            ):
                connection.execute("SET TimeZone = 'UTC'")
                connection.execute("SET enable_progress_bar = false")  # of standard output, which is for answers
                unread = _register_drivers(connection, query)
                relation = beside(connection.sql, query)
                if relation is None:
                    raise _bad_query("it gives no rows; it must be one SELECT")
                yield relation, beside
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            said = _without_advice(str(error))
            raise _bad_query(next((why for scheme, why in unread.items() if f"{scheme}://" in said), said)) from error


@contextmanager
def _in_a_thread(connection: Any) -> Iterator[_Beside]:
    """What calls a function in a thread and waits for it. In the main thread DuckDB would lose what the handler of a
    signal raises, or keep it waiting until there are rows: SIGTERM and Ctrl-C shall end a job at once.
    """
    with ThreadPoolExecutor(1, "query") as thread:
        try:
            yield lambda function, *args: thread.submit(function, *args).result()
        except BaseException:
            connection.interrupt()
            raise


def _register_drivers(connection: Any, query: str) -> dict[str, str]:
    """Let DuckDB read the addresses that may be in a query, where that is possible; else say why not, by scheme.

    What begins like an address may be a text that rows are compared with: nothing is refused before DuckDB opens it.
    """
    unread = {}
    for scheme in sorted(set(re.findall(r"""["']([a-z][a-z0-9+.-]*)://""", query)) - {"file"}):
        unread[scheme] = f"it names a file by {scheme}://. Give that to --corpus, or download it first"
        try:
            if (driver := _driver(scheme)) is not None:
                connection.register_filesystem(driver)
                del unread[scheme]
        except Exception as error:  # drivers raise anything
            unread[scheme] = f"it names a file by {scheme}://, and {error}".splitlines()[0]
    return unread


def _driver(scheme: str) -> Any:
    """The driver of a scheme; None for one that wants to know a server, and for web servers: they lack what DuckDB
    asks for.
    """
    import fsspec

    kind = fsspec.get_filesystem_class(scheme)
    wanted = [*inspect.signature(kind.__init__).parameters.values()][1:]
    needs_more = any(each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD for each in wanted)
    return None if needs_more or scheme in ("http", "https") else fsspec.filesystem(scheme)


def _without_advice(message: str) -> str:
    """DuckDB's sentence, without a drawing of the query and the advice to fetch extensions."""
    return message.partition("\n\n")[0]


def _duckdb_file(database: str) -> Path | None:
    """The file if the database is DuckDB's: a URL such as duckdb:///news.db, or a file that begins like one."""
    scheme, mark, rest = database.partition(":///")
    path = Path(os.path.expanduser(rest if mark else database))
    if mark and scheme == "duckdb":
        if not os.path.isfile(path):
            raise _bad_database(database, "there is no such file")
        return path
    with suppress(OSError):
        if not mark and _begins(path, 8, b"DUCK"):
            return path
    return None


def _begins(path: Path, offset: int, magic: bytes) -> bool:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(len(magic)) == magic


# --- SQLAlchemy ------------------------------------------------------------------------------------------------------


def _read_sqlalchemy(query: str, url: URL, columns: Columns) -> Rows:
    from sqlalchemy.exc import SQLAlchemyError

    with _sqlalchemy(url) as connection:
        try:
            if (in_utc := _IN_UTC.get(url.get_backend_name())) is not None:
                connection.exec_driver_sql(in_utc)
            # As it stands, without a meaning for ":name" and "%"; and through a cursor of the server's.
            options = {"no_parameters": True, "yield_per": BATCH_ROWS}
            result = connection.exec_driver_sql(query, execution_options=options)
            if not result.returns_rows:
                raise _bad_query("it gives no rows; it must be one SELECT")
            names = list(result.keys())
            check_header("the query's result", names, columns, field="query")
            for number, row in enumerate(result, 1):
                yield number, dict(zip(names, row, strict=True))
        except SQLAlchemyError as error:
            raise _bad_query(_complaint(error)) from error


@contextmanager
def _sqlalchemy(url: URL) -> Iterator[Connection]:
    """A connection, on which nothing is ever committed."""
    import sqlalchemy
    from sqlalchemy.exc import SQLAlchemyError

    options: dict[str, Any] = {"poolclass": sqlalchemy.NullPool}
    if url.get_backend_name() == "sqlite":
        options["creator"] = partial(_open_sqlite, url)
    try:
        connection = sqlalchemy.create_engine(url, **options).connect()
    except ImportError as error:
        package = next((package for name, package in _DRIVERS.values() if name == url.drivername), error.name)
        raise _bad_database(_public(url), f"its driver is missing: pip install '{package}'") from error
    except SQLAlchemyError as error:
        raise _bad_database(_public(url), f"it cannot be reached: {_complaint(error)}") from error
    with connection:
        yield connection


def _open_sqlite(url: URL) -> sqlite3.Connection:
    """For reading only: a name that is misspelt makes no new file, and a query changes nothing."""
    path = Path(os.path.expanduser(url.database or ""))
    connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)
    connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
    return connection


def _url(database: str) -> URL:
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    if "://" not in database:
        database = _sqlite_file(database)
    try:
        url = make_url(database)
    except (ArgumentError, ValueError) as error:
        raise _bad_database(
            database.partition("://")[0] + "://...",
            "this is no database's URL. Such are sqlite:///news.db and postgresql://user@host/news",
        ) from error
    return url.set(drivername=_DRIVERS[url.drivername][0]) if url.drivername in _DRIVERS else url


def _sqlite_file(database: str) -> str:
    path = Path(os.path.expanduser(database))
    if not os.path.isfile(path):
        raise _bad_database(
            database,
            "there is no such file. Give a SQLite or DuckDB file, or a URL such as postgresql://user@host/news",
        )
    if not _begins(path, 0, b"SQLite format 3\0"):
        raise _bad_database(database, "this is neither a SQLite nor a DuckDB file")
    return f"sqlite:///{path}"


def _public(url: URL) -> str:
    """A URL without its password, and without options, which may hold another."""
    return url.set(query={}).render_as_string(hide_password=True)


def _complaint(error: Exception) -> str:
    """What the database says, without the query and without links."""
    return str(getattr(error, "orig", None) or error).strip().partition("\n(Background")[0]
