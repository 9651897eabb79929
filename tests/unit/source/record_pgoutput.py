"""Records real pgoutput messages for test_decode_recorded.py.

``python -m tests.unit.source.record_pgoutput`` writes data/pgoutput.jsonl.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

from headrace.testing.postgres import Postgres

DATA = Path(__file__).parent / "data" / "pgoutput.jsonl"
STATEMENTS = """
INSERT INTO items VALUES (1, 'one', 1.50, true, repeat('x', 13)), (2, '', NULL, false, NULL), (3, E'tab\\tnew\\nline', -0.01, NULL, '13 characters');
UPDATE items SET price = 2.00 WHERE id = 1;
UPDATE items SET id = 20 WHERE id = 2;
DELETE FROM items WHERE id = 3;
BEGIN; INSERT INTO logs VALUES ('kept'); SAVEPOINT s; INSERT INTO logs VALUES ('rolled back'); ROLLBACK TO s; INSERT INTO items VALUES (4, 'vier ✓ 四', 9.99, true, ''); COMMIT;
BEGIN; INSERT INTO items VALUES (5, 'never', 1, true, 'x'); ROLLBACK;
INSERT INTO items SELECT 6, 'toasted', 0, true, string_agg(md5(n::text), '') FROM generate_series(1, 400) n;
UPDATE items SET name = 'unchanged toast' WHERE id = 6;
UPDATE wide SET b = b || '!' WHERE a = 1;
DELETE FROM wide WHERE a = 2;
ALTER TABLE items ADD COLUMN added text;
INSERT INTO items VALUES (7, 'with', 1, true, 'more', 'columns');
TRUNCATE items, logs;
INSERT INTO items (id) VALUES (8);
"""


def main() -> None:
    with Postgres() as server, server.connect() as connection:
        connection.execute("CREATE TABLE items (id int PRIMARY KEY, name text, price numeric(8,2), flag boolean, body text)")
        connection.execute("CREATE TABLE logs (line text)")
        connection.execute("CREATE TABLE wide (a int PRIMARY KEY, b text)")
        connection.execute("ALTER TABLE wide REPLICA IDENTITY FULL")
        connection.execute("INSERT INTO wide VALUES (1, 'old'), (2, NULL)")
        connection.execute("CREATE PUBLICATION keyed FOR TABLE items, wide")
        connection.execute("CREATE PUBLICATION appends FOR TABLE logs WITH (publish = 'insert, truncate')")
        connection.execute("SELECT pg_create_logical_replication_slot('recorded', 'pgoutput')")
        for line in STATEMENTS.strip().splitlines():
            for statement in line.split(";")[:-1] if line.startswith("BEGIN") else [line]:
                connection.execute(statement)  # type: ignore[arg-type]
        rows = connection.execute(
            "SELECT (lsn - '0/0')::bigint, data FROM pg_logical_slot_peek_binary_changes('recorded', NULL, NULL,"
            " 'proto_version', '1', 'publication_names', 'keyed,appends')"
        ).fetchall()
    DATA.parent.mkdir(exist_ok=True)
    with DATA.open("w") as out:
        for lsn, data in rows:
            out.write(json.dumps([lsn, base64.b64encode(data).decode()]) + "\n")


if __name__ == "__main__":
    main()
