"""``headrace demo``: the main job for real, on an embedded PostgreSQL that this command starts and fills."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

MARK = "# made by `headrace demo`, which replaces this folder\n"

ANALYTICS: Sequence[tuple[str, str]] = (
    (
        "Customers by lifetime value",
        """
        WITH spent AS (
            SELECT u.id, u.country, coalesce(sum(o.total) FILTER (o.status <> 'returned'), 0) AS value, count(o.id) AS orders
            FROM silver.users u LEFT JOIN silver.orders o ON o.user_id = u.id GROUP BY ALL)
        SELECT CASE WHEN value >= 10000 THEN 'champions' WHEN value >= 2500 THEN 'loyal'
                    WHEN value > 0 THEN 'occasional' ELSE 'none yet' END AS segment,
               count(*) AS users, sum(orders) AS orders, sum(value) AS lifetime_value, round(avg(value), 2) AS per_user
        FROM spent GROUP BY ALL ORDER BY lifetime_value DESC
        """,
    ),
    (
        "Products by revenue",
        """
        SELECT rank() OVER (ORDER BY sum(o.total) DESC) AS popularity, p.name, p.category, p.price,
               sum(o.quantity) AS units, sum(o.total) AS revenue
        FROM silver.products p JOIN silver.orders o ON o.product_id = p.id
        WHERE o.status <> 'returned' GROUP BY ALL ORDER BY revenue DESC LIMIT 8
        """,
    ),
    (
        "Sales by week",
        """
        SELECT date_trunc('week', placed_at)::DATE AS week, count(*) AS orders, sum(total) AS revenue,
               round(avg(sum(total)) OVER (ORDER BY date_trunc('week', placed_at) ROWS 3 PRECEDING), 2) AS four_week_average,
               bar(sum(total), 0, max(sum(total)) OVER (), 24) AS trend
        FROM silver.orders WHERE status <> 'returned' GROUP BY date_trunc('week', placed_at) ORDER BY 1 DESC LIMIT 8
        """,
    ),
    (
        "What the full change log adds: how the shop's prices moved while you watched",
        """
        SELECT p.after.name AS product, count(*) AS changes, min(p.after.price) AS lowest, max(p.after.price) AS highest,
               max(p.commit_time)::TIMESTAMP(0) AS last_change_utc
        FROM bronze.products p WHERE p.op = 'u' GROUP BY ALL ORDER BY highest - lowest DESC LIMIT 5
        """,
    ),
)


def demo(
    folder: Annotated[Path, typer.Option(help="Where to make the demo's project and lake; replaced if a demo made it.")] = Path(
        "demo-lake"
    ),
    seconds: Annotated[float, typer.Option(min=1, help="How long customers buy while their database is followed.")] = 10,
    orders: Annotated[int, typer.Option(min=1000, help="Orders in the shop at the beginning.")] = 100_000,
) -> None:
    """Start a PostgreSQL, load a shop, capture it into a lakehouse while customers buy, prove both equal, show the analytics.

    Example: headrace demo --seconds 20
    """
    from headrace.cli.verify import show_report
    from headrace.cli.watching import Lines, LiveTable
    from headrace.errors import SourceAndLakeDiffer
    from headrace.pipeline import open_reader, open_run, verify_lake
    from headrace.project import Project
    from headrace.testing.postgres import Postgres
    from headrace.testing.shop import Customers, load_shop

    console = Console()
    folder = folder.absolute()
    _make_room(folder)
    with Postgres() as server:
        console.rule("1. An operational database")
        load_shop(server.url, orders=orders)
        console.print(f"PostgreSQL {server.version} with users, products and {orders:,} orders; customers begin to buy.")
        folder.mkdir(parents=True)
        (folder / "headrace.yaml").write_text(
            f"{MARK}pipeline: shop\nsource:\n  url: {server.url}\n  tables: [public.users, public.products, public.orders]\n"
        )
        project = Project.load(folder)
        failed: list[BaseException] = []
        with Customers(server.url) as customers:
            console.rule("2. Copied and followed into a lakehouse, while customers buy")
            watching = LiveTable(console) if console.is_terminal else Lines(console)
            with open_run(project, watching) as running:

                def follow() -> None:
                    try:
                        running.run()
                    except BaseException as error:
                        failed.append(error)

                thread = threading.Thread(target=follow, name="demo-run")
                with watching:
                    thread.start()
                    thread.join(seconds)
                if not failed:
                    console.rule("3. Proof, while customers still buy")
                    report = verify_lake(project)
                running.stop()
                thread.join()
            if failed:
                raise failed[0]
        show_report(console, report)
        console.print(f"{customers.transactions:,} transactions were committed meanwhile.")
        if not report.equal:
            raise SourceAndLakeDiffer("the demo's source and lake differ")
    console.rule("4. Analytics over the lake; the database is gone by now")
    with open_reader(project) as engine:
        for title, sql in ANALYTICS:
            _show(console, title, engine.sql(sql))
    console.print(f'\nGo on yourself:  headrace -C {folder.name} query "SELECT op, count(*) FROM bronze.orders GROUP BY ALL"')
    console.print(f"                 headrace -C {folder.name} sql")


def _make_room(folder: Path) -> None:
    """Remove an earlier demo; refuse to touch anything else."""
    from headrace.errors import ProjectError

    if not folder.exists():
        return
    file = folder / "headrace.yaml"
    if not file.is_file() or not file.read_text().startswith(MARK):
        raise ProjectError(
            f"{folder} exists and was not made by a demo", remedy="Name another folder: headrace demo --folder PATH"
        )
    shutil.rmtree(folder)


def _show(console: Console, title: str, result: Any) -> None:
    table = Table(title=title, title_justify="left", title_style="bold")
    rows = result.fetchall()
    for n, name in enumerate(result.columns):
        numeric = bool(rows) and not isinstance(rows[0][n], str)
        table.add_column(name, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*["" if value is None else f"{value:,}" if isinstance(value, int) else str(value) for value in row])
    console.print(table)
