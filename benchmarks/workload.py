"""The benchmark workload: one insert transaction, then many transactions of five statements, on tables of ten columns.

``create`` makes the tables; ``insert_only`` adds ``rows`` orders in one transaction; ``mix`` runs ``transactions`` times: insert
an order, update two, delete one, update a user. Both run after the slots were made, so that every slot sees the same changes.
``live`` writes at a rate.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from headrace.testing.postgres import Postgres

TABLES = """
CREATE TABLE users (
    id bigint PRIMARY KEY, email text NOT NULL, name text NOT NULL, country char(2), segment varchar(20),
    balance numeric(12,2) NOT NULL DEFAULT 0, logins integer NOT NULL DEFAULT 0, active boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now(), updated_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE orders (
    id bigint PRIMARY KEY, user_id bigint NOT NULL, product_id bigint NOT NULL, quantity integer NOT NULL,
    unit_price numeric(10,2) NOT NULL, total numeric(12,2) NOT NULL, status varchar(20) NOT NULL, note text,
    created_at timestamptz NOT NULL DEFAULT now(), updated_at timestamptz NOT NULL DEFAULT now());
CREATE SEQUENCE order_ids START 100000001;
INSERT INTO users SELECT g, 'user'||g||'@example.com', 'User '||g, 'SE', 'new' FROM generate_series(1, 100000) g;
"""

ORDERS = """
INSERT INTO orders
SELECT g, 1 + g % 100000, 1 + g % 997, 1 + g % 5, (g % 10000) / 100.0, (1 + g % 5) * (g % 10000) / 100.0,
       (ARRAY['new','paid','shipped','done'])[1 + g % 4], CASE WHEN g % 3 = 0 THEN NULL ELSE 'note of order ' || g END
FROM generate_series({first}, {last}) g
"""

TRANSACTION = """
\\set a random(1, {rows})
\\set b random(1, {rows})
\\set c random(1, {rows})
\\set u random(1, 100000)
BEGIN;
INSERT INTO orders VALUES (nextval('order_ids'), :u, 7, 2, 9.95, 19.90, 'new', 'by mix');
UPDATE orders SET status = 'paid', updated_at = now() WHERE id = :a;
UPDATE orders SET quantity = quantity + 1, total = total + unit_price, updated_at = now() WHERE id = :b;
DELETE FROM orders WHERE id = :c;
UPDATE users SET logins = logins + 1, updated_at = now() WHERE id = :u;
END;
"""


def create(server: Postgres) -> None:
    server.execute(TABLES)


def insert_only(server: Postgres, rows: int, *, first: int = 1) -> None:
    server.execute(ORDERS.format(first=first, last=first + rows - 1))


def mix(server: Postgres, transactions: int, *, rows: int, clients: int = 2, seconds: int | None = None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "mix.sql"
        script.write_text(TRANSACTION.format(rows=rows))
        amount = ["-T", str(seconds)] if seconds else ["-t", str(transactions // clients)]
        server.run_tool("pgbench", "-n", "-c", str(clients), "-j", "1", *amount, "-f", str(script))


BEATS = "CREATE TABLE beats (id bigserial PRIMARY KEY, user_id bigint)"

LIVE_TRANSACTION = """
\\set a random(1, {rows})
\\set b random(1, {rows})
\\set u random(1, 100000)
BEGIN;
INSERT INTO beats (user_id) VALUES (:u);
INSERT INTO orders VALUES (nextval('order_ids'), :u, 7, 2, 9.95, 19.90, 'new', 'live');
UPDATE orders SET status = 'paid', updated_at = now() WHERE id = :a;
UPDATE orders SET quantity = quantity + 1, total = total + unit_price, updated_at = now() WHERE id = :b;
END;
"""


def create_beats(server: Postgres) -> None:
    """A table with a row for each transaction of `live`."""
    server.execute(BEATS)


def live(server: Postgres, *, rate: int, seconds: int, rows: int) -> float:
    """Write so many transactions of four changes a second, or as many as can be; how many were written a second."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "live.sql"
        script.write_text(LIVE_TRANSACTION.format(rows=rows))
        told = server.run_tool("pgbench", "-n", "-c", "4", "-j", "1", "-R", str(rate), "-T", str(seconds), "-f", str(script))
    found = re.search(r"tps = ([0-9.]+)", told.stdout)
    assert found is not None
    return float(found[1])
