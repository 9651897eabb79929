"""Random tables: their columns, key and replica identity, as SQL."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Literal

from headrace.schema import TableId
from tests.integration.property import kinds
from tests.integration.property.kinds import Kind

Identity = Literal["primary key", "index", "full", "none", "nothing"]

NAMES = (
    *(
        "id",
        "a",
        "b",
        "Name",
        "two words",
        'quo"te',
        "ü",
        "a.b",
        "select",
        "op",
        "before",
        "after",
        "unavailable",
        "row",
        "value",
    ),
    *(
        "position",
        "k0",
        "old_k0",
        "v0",
        "epoch",
        "commit_lsn",
        "ordinal",
        "xid",
        "moved",
        "sets",
        "life",
        "it's",
        "a,b",
        "_x",
        "%s",
    ),
)
TABLES = ("orders", "Mixed Case", "c", "user", 'with"quote', "tä.ble", "states", "changes", "final", "bounds")


def identifier(*names: str) -> str:
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


@dataclass(frozen=True, kw_only=True)
class Column:
    name: str
    kind: Kind
    external: bool = False
    """Big values of it are kept outside the row, uncompressed."""

    @property
    def sql(self) -> str:
        return f"{identifier(self.name)} {self.kind.sql}"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What random tables are like. ``keys``: so many different keys there are, at most; ``big``: how likely a column holds values
    that do not fit into a row."""

    columns: tuple[int, int] = (1, 6)
    keys: int = 12
    big: float = 0.2
    keyless: float = 0.15
    long_keys: float = 0.1
    odd: float = 0.3
    """How likely names, generated and dropped columns, and partitions are out of the ordinary."""


@dataclass(kw_only=True)
class Table:
    """``history``: from which LSN of the log on the table had which columns, oldest first."""

    id: TableId
    key: tuple[Column, ...]
    identity: Identity
    history: list[tuple[int, tuple[Column, ...]]]
    create: list[str]
    shape: Shape
    partitioned: bool = False
    insert_only: bool = False
    """A table without key of which no row is updated or deleted at the source, so that silver is equal to it."""
    later: list[Column] = field(default_factory=list)
    grown: bool = False
    rewritten: bool = False
    """Since the pipeline last caught up a column was added; the table got new files. Where both happened, rows from before may
    have got a value that the log does not tell, and the table is parked: so not both."""

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.history[-1][1]

    @property
    def followed_by_key(self) -> bool:
        return self.identity in ("primary key", "index", "full")

    @property
    def sql(self) -> str:
        return identifier(self.id.schema, self.id.name)

    def columns_at(self, lsn: int) -> tuple[Column, ...]:
        return [columns for since, columns in self.history if since <= lsn][-1]

    def value(self, column: Column, random: Random) -> str:
        """A random value of a column, as SQL of its type."""
        if random.random() < 0.12:
            return f"NULL::{column.kind.sql}"
        draw = column.kind.big if column.kind.big is not None and random.random() < self.big_share(column) else column.kind.draw
        return f"({draw(random)})::{column.kind.sql}"

    def big_share(self, column: Column) -> float:
        return 0.7 if column.external else 0.05

    def new_key(self, random: Random) -> list[str]:
        """One of the keys that there may be, as SQL."""
        number = random.randrange(self.shape.keys)
        result = []
        for column in self.key:
            assert column.kind.key is not None
            result.append(f"({column.kind.key(number % 5 if column is not self.key[-1] else number)})::{column.kind.sql}")
        return result


def random_table(random: Random, number: int, shape: Shape) -> Table:
    odd = random.random() < shape.odd
    name = random.choice(TABLES) + str(number) if odd else f"t{number}"
    schema = random.choice(["public", "Other Schema"]) if odd else "public"
    identity: Identity = (
        random.choice(["none", "none", "nothing"])
        if random.random() < shape.keyless
        else random.choice(["primary key", "primary key", "primary key", "index", "full"])
    )
    names = random.sample(NAMES, len(NAMES)) if odd else [f"c{n}" for n in range(40)]
    key: list[Column] = []
    for _ in range(random.choice([1, 1, 1, 2, 2, 3])):
        kind = kinds.LONG_KEY if not key and random.random() < shape.long_keys else random.choice(kinds.KEYS)
        key.append(Column(name=names.pop(), kind=kind, external=kind is kinds.LONG_KEY))
    if key[0].kind is kinds.LONG_KEY:
        del key[1:]  # an index has no room for more
    columns = [*key]
    for _ in range(random.randint(*shape.columns)):
        big = random.random() < shape.big
        kind = random.choice(kinds.OF_ANY_LENGTH if big else kinds.ALL)
        columns.append(Column(name=names.pop(), kind=kind, external=big and kind.external))
    random.shuffle(columns)
    partitioned = odd and identity == "primary key" and random.random() < 0.3 and _can_partition(key[0])
    table = Table(
        id=TableId(schema, name),
        key=tuple(key),
        identity=identity,
        history=[(0, tuple(columns))],
        create=[],
        shape=shape,
        partitioned=partitioned,
        insert_only=identity in ("none", "nothing") and random.random() < 0.5,
        later=[Column(name=name, kind=random.choice(kinds.ALL)) for name in names[:3]],
    )
    table.create = list(_creation(table, random, odd))
    return table


def _can_partition(column: Column) -> bool:
    """Interval and the like hash too, but a moved row is a delete and an insert of the same key only where equal is the same."""
    return column.kind in (kinds.INTEGER, kinds.BIGINT, kinds.TEXT, kinds.UUID, kinds.DATE)


def _creation(table: Table, random: Random, odd: bool) -> list[str]:
    key = ", ".join(identifier(column.name) for column in table.key)
    parts = [column.sql for column in table.columns]
    if odd:
        parts.insert(random.randrange(len(parts) + 1), "dropped text DEFAULT 'gone'")
        if table.identity != "full":  # which a generated column forbids
            parts.insert(random.randrange(len(parts) + 1), "generated int GENERATED ALWAYS AS (1 + 1) STORED")
    if table.identity in ("primary key", "full", "nothing"):
        parts.append(f"PRIMARY KEY ({key})")
    how = f" PARTITION BY HASH ({identifier(table.key[0].name)})" if table.partitioned else ""
    result = [f"CREATE TABLE {table.sql} ({', '.join(parts)}){how}"]
    result += [
        f"ALTER TABLE {table.sql} ALTER {identifier(column.name)} SET STORAGE EXTERNAL"
        for column in table.columns
        if column.external
    ]
    if odd:
        result.append(f"ALTER TABLE {table.sql} DROP dropped")
    if table.identity == "index":
        index = f"{table.id.name}_identity"
        result += [f"ALTER TABLE {table.sql} ALTER {identifier(column.name)} SET NOT NULL" for column in table.key]
        result.append(f"CREATE UNIQUE INDEX {identifier(index)} ON {table.sql} ({key})")
        result.append(f"ALTER TABLE {table.sql} REPLICA IDENTITY USING INDEX {identifier(index)}")
    elif table.identity in ("full", "nothing"):
        result.append(f"ALTER TABLE {table.sql} REPLICA IDENTITY {table.identity.upper()}")
    for number in range(3 if table.partitioned else 0):
        part = identifier(table.id.schema, f"{table.id.name}_part{number}")
        result.append(f"CREATE TABLE {part} PARTITION OF {table.sql} FOR VALUES WITH (MODULUS 3, REMAINDER {number})")
    return result
