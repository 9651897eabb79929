"""An independent reader of the same changes: a second slot, decoded message by message, in Python."""

from __future__ import annotations

from collections.abc import Iterable

import psycopg

from tests.unit.source.reference_decoder import ReferenceDecoder, Row

SLOT = "witness"


def create_witness(url: str, publications: Iterable[str]) -> None:
    """Make the slot. The publications must exist already, and a run must not have begun: it sees everything the run will see."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [SLOT])


def witnessed(url: str, publications: Iterable[str]) -> list[Row]:
    """Every row change since `create_witness`, in commit order."""
    decoder = ReferenceDecoder()
    with psycopg.connect(url, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT (lsn - '0/0')::bigint, data FROM pg_logical_slot_peek_binary_changes(%s, NULL, NULL,"
            " 'proto_version', '1', 'publication_names', %s)",
            [SLOT, ",".join(publications)],
        )
        for lsn, data in cursor:
            decoder.message(lsn, data)
    return decoder.rows
