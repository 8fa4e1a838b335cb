"""A PostgreSQL cluster as the tests see it; the fixture `postgres` runs it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path


@dataclass
class Postgres:
    """A running cluster that only this test session knows."""

    directory: Path
    _numbers: Iterator[int] = field(default_factory=count)

    def url(self, database: str) -> str:
        """How to reach one database."""
        return f"postgresql://postgres@/{database}?host={self.directory}"

    def fresh(self) -> str:
        """Make an empty database and return its URL."""
        import psycopg  # noqa: PLC0415 - only where PostgreSQL is tested

        name = f"test{next(self._numbers)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as db:
            db.execute(f"CREATE DATABASE {name}".encode())
        return self.url(name)
