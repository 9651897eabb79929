"""A small shop: the demo's database, and customers who go on buying while it is captured."""

from __future__ import annotations

import random
import threading
from importlib.resources import files
from types import TracebackType

import psycopg

TABLES = ("public.users", "public.products", "public.orders")


def load_shop(url: str, *, users: int = 2_000, products: int = 200, orders: int = 100_000) -> None:
    """Make the shop's tables in the database and fill them."""
    script = files("headrace.testing").joinpath("shop.sql").read_text()
    with psycopg.connect(url) as connection:
        connection.execute(script % {"users": users, "products": products, "orders": orders})


class Customers:
    """Customers in a thread: each transaction places an order and takes it from stock; some pay, return, sign up or leave.

    ``transactions`` counts what was committed. Leave the context to stop them.
    """

    def __init__(self, url: str, *, pause: float = 0.002, seed: int = 7) -> None:
        self._url = url
        self._pause = pause
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._buy, name="shop-customers", daemon=True)
        self.transactions = 0

    def __enter__(self) -> Customers:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _buy(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            while not self._stop.wait(self._pause):
                with connection.transaction():
                    self._transaction(connection)
                self.transactions += 1

    def _transaction(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        chance = self._random.random()
        if chance < 0.6:
            connection.execute(
                "WITH bought AS (UPDATE products SET stock = stock - 1 WHERE id = %s RETURNING id, price)"
                " INSERT INTO orders (user_id, product_id, quantity, total)"
                " SELECT (SELECT min(id) + %s %% count(*) FROM users), id, 1, price FROM bought",
                [self._random.randint(1, 200), self._random.randint(0, 10**6)],
            )
        elif chance < 0.8:
            connection.execute(
                "UPDATE orders SET status = 'shipped' WHERE id = (SELECT max(id) - %s FROM orders)",
                [self._random.randint(0, 500)],
            )
        elif chance < 0.9:
            connection.execute("DELETE FROM orders WHERE id = (SELECT max(id) - %s FROM orders)", [self._random.randint(0, 500)])
        elif chance < 0.97:
            number = self._random.randint(0, 10**9)
            connection.execute(
                "INSERT INTO users (email, name, country) VALUES (%s, %s, 'SE')", [f"new{number}@example.com", f"New {number}"]
            )
        else:
            connection.execute("UPDATE products SET price = round(price * 1.01, 2) WHERE id = %s", [self._random.randint(1, 200)])
