"""One database for all tests of the type mappings: they leave nothing behind that another would meet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from headrace.testing.postgres import Postgres
from tests.conftest import Database


@pytest.fixture(scope="package")
def types_database(postgres: Postgres) -> Iterator[Database]:
    postgres.execute("CREATE DATABASE types_of_values")
    yield Database(server=postgres, name="types_of_values")
    postgres.execute("DROP DATABASE types_of_values WITH (FORCE)")
