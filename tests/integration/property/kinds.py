"""Kinds of columns: random values of each as SQL, and what the lake must hold for the text that PostgreSQL gives of them.

What the lake must hold is worked out here from the text alone, value by value in plain Python: nothing of the product's own
conversion is used.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time
from decimal import Decimal
from random import Random
from typing import Any

Draw = Callable[[Random], str]
"""A random value as an SQL expression, not yet cast to its type."""
Held = Callable[[str], Any]
"""From PostgreSQL's text of a value to the lake's value, or `UNREPRESENTABLE`."""

UNREPRESENTABLE = object()

USER_TYPES = (
    "CREATE TYPE mood AS ENUM ('sad', 'ok', 'very, \"happy\"', '', 'NULL')",
    "CREATE DOMAIN price AS numeric(10,2) CHECK (VALUE >= 0 OR VALUE = 'NaN')",
    "CREATE DOMAIN label AS varchar(40)",
    "CREATE DOMAIN short_label AS label CHECK (length(VALUE) < 20)",
    "CREATE DOMAIN longer AS text",
    "CREATE TYPE pair AS (a int, b text)",
)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """``key``: the n-th of endlessly many different values that may be keys. ``big``: values that do not fit into a row, so that
    they are unavailable when they did not change. ``wider``: names of kinds that an ALTER may turn this one into."""

    sql: str
    held: Held
    draw: Draw
    key: Callable[[int], str] | None = None
    big: Draw | None = None
    external: bool = True
    """Big values lie outside the row uncompressed; false where the storage cannot be chosen."""
    wider: tuple[str, ...] = ()


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def one_of(*texts: str) -> Draw:
    return lambda random: literal(random.choice(texts))


def either(*draws: Draw) -> Draw:
    return lambda random: random.choice(draws)(random)


# --- values -----------------------------------------------------------------------------------------------------------------------

TEXTS = (
    *("", " ", "  a ", "NULL", "null", "\\N", "\\", '"', "'", "''", "{}", '{"a": 1}', "[1:2]={1,2}", "tab\tline\nreturn\r", "%s"),
    *("Grüße 🦆", "e\u0301", "\u200b", "\x01", "\x7f", "\ufeff", "\U0010ffff", "ÿ", "u", "t", "n", "$$", "--", ";", "\\x00", "."),
    *("x" * 11, "x" * 12, "x" * 13, "ü" * 6, "ü" * 6 + "y", "ß" * 200, "2024-01-01", "infinity", "NaN", "0x1F", "~" * 255),
)


def any_text(random: Random) -> str:
    if random.random() < 0.7:
        return literal(random.choice(TEXTS))
    return literal("".join(random.choice("abcÄß🦆 ,{}\"\\'\n%0") for _ in range(random.randint(0, 30))))


def short_text(most: int) -> Draw:
    return lambda random: literal(random.choice([text for text in TEXTS if len(text) <= most]))


def integers(bits: int) -> Draw:
    edges = [0, 1, -1, 10, 2 ** (bits - 1) - 1, -(2 ** (bits - 1))]
    return lambda random: literal(str(random.choice([*edges, random.randint(-100, 100), random.getrandbits(bits - 1)])))


def decimals(precision: int, scale: int, *more: str) -> Draw:
    def draw(random: Random) -> str:
        limit = 10**precision - 1
        unscaled = random.choice(
            [0, 1, -1, limit, -limit, random.randint(-limit, limit), random.randint(-min(1000, limit), min(1000, limit))]
        )
        return literal(random.choice([f"{unscaled}e{-scale}"] * 4 + list(more))) if more else literal(f"{unscaled}e{-scale}")

    return draw


REALS = ("0", "-0", "1", "0.1", "NaN", "Infinity", "-Infinity", "1e-45", "3.4028235e38", "1.17549435e-38", "16777217", "-1e-7")
DOUBLES = (
    "0",
    "-0",
    "1",
    "0.1",
    "NaN",
    "Infinity",
    "-Infinity",
    "5e-324",
    "1.7976931348623157e308",
    "0.30000000000000004",
    "1e23",
)
NUMERICS = (
    *("0", "0.0", "1", "1.0", "1.000", "-0.00", "NaN", "Infinity", "-Infinity", "1e-1000", "1e1000", "0.00010000", "12345.6789"),
    "99999999999999999999999999999999999999999",
)
DATES = (
    *("1970-01-01", "0001-01-01", "9999-12-31", "2000-02-29", "1582-10-10", "0044-03-15 BC", "0001-12-31 BC", "10000-01-01"),
    *("5874897-12-31", "4714-11-24 BC", "infinity", "-infinity", "2024-07-01"),
)
TIMES = ("00:00", "23:59:59.999999", "12:34:56.7", "00:00:00.000001", "24:00", "10:20:30")
MOMENTS = (
    *("1970-01-01", "0001-01-01", "9999-12-31 23:59:59.999999", "1969-12-31 23:59:59.999999", "2024-02-29 12:34:56.7"),
    *("infinity", "-infinity", "0044-03-15 01:02:03.04 BC", "10000-01-01"),
    *("294276-12-31 23:59:59.999+00", "4714-11-24 00:00+00 BC"),  # the outermost, in UTC: elsewhere they are out of range
)
INTERVALS = ("0", "1 year -2 months 3 days 04:05:06.7", "-1 day", "178000000 years", "24:00:00", "1 day", "1 mon", "infinity")
JSONS = ('{"a":  1, "a": 2}', "null", '""', "[]", '{"b": [1, 2.50, null]}', '"\\u00e4"', "1.0", "1.00", '{"a": "b\\"c"}')


def days(random: Random) -> str:
    if random.random() < 0.6:
        return literal(random.choice(DATES))
    return f"date '1970-01-01' + {random.randint(-2_440_588, 2_145_000_000)}"


def moments(random: Random) -> str:
    if random.random() < 0.6:
        return literal(random.choice(MOMENTS))
    return f"timestamp '1970-01-01' + interval '{random.randint(-2_400_000, 106_000_000)} days {random.randint(0, 10**10)} us'"


def uuids(random: Random) -> str:
    edges = ["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"]
    return literal(random.choice([*edges, f"{random.getrandbits(128):032x}"]))


def byte_strings(random: Random) -> str:
    return literal("\\x" + random.choice(["", "00", "00ff", "5c78", random.randbytes(random.randint(0, 20)).hex()]))


# --- values that do not fit into a row ----------------------------------------------------------------------------------------------


def hexadecimal(random: Random) -> str:
    """3 to 9 kB that cannot be compressed, different each time."""
    return (
        f"(SELECT string_agg(md5('{random.getrandbits(32)} ' || g), '') FROM generate_series(1, {random.randint(100, 280)}) AS g)"
    )


def big_array(element: str, *more: str) -> Draw:
    """``more``: SQL of elements of which one stands at the end."""

    def draw(random: Random) -> str:
        return f"array_append(array_fill(({literal(element)})::text, ARRAY[{random.randint(550, 700)}]), {random.choice(more)})"

    return draw


def big_texts(random: Random) -> str:
    return random.choice(
        [
            f"ARRAY[{hexadecimal(random)}, NULL, '', 'NULL', {any_text(random)}]",
            f"ARRAY[[{hexadecimal(random)}], ['b']]",
            f"array_fill({hexadecimal(random)}, ARRAY[2], ARRAY[0])",
        ]
    )


# --- what the lake holds ------------------------------------------------------------------------------------------------------------


def same(text: str) -> str:
    return text


def held_numeric(text: str) -> Any:
    return UNREPRESENTABLE if text == "NaN" else Decimal(text)


def held_real(text: str) -> float:
    return float(struct.unpack("f", struct.pack("f", float(text)))[0])


def _year_fits(text: str) -> bool:
    return "infinity" not in text and not text.endswith(" BC") and len(text.split("-")[0]) == 4


def held_date(text: str) -> Any:
    return date.fromisoformat(text) if _year_fits(text) else UNREPRESENTABLE


def held_time(text: str) -> Any:
    return UNREPRESENTABLE if text.startswith("24") else time.fromisoformat(_microseconds(text))


def held_timestamp(text: str) -> Any:
    return datetime.fromisoformat(_microseconds(text)) if _year_fits(text) else UNREPRESENTABLE


def held_timestamptz(text: str) -> Any:
    if not _year_fits(text):
        return UNREPRESENTABLE
    assert text.endswith("+00"), "the oracle's session is to be in UTC"
    return datetime.fromisoformat(_microseconds(text.removesuffix("+00"))).replace(tzinfo=UTC)


def _microseconds(text: str) -> str:
    whole, dot, fraction = text.partition(".")
    return f"{whole}.{fraction:0<6}" if dot else text


def held_array(element: Held) -> Held:
    def held(text: str) -> Any:
        if not text.startswith("{"):
            return UNREPRESENTABLE  # bounds that do not start at 1
        elements = list(_elements(text))
        if any(one is UNREPRESENTABLE for one in elements):
            return UNREPRESENTABLE
        values = [None if one is None else element(one) for one in elements]
        return UNREPRESENTABLE if any(value is UNREPRESENTABLE for value in values) else values

    return held


def _elements(text: str) -> Iterator[Any]:
    """The elements' texts, None for NULL; UNREPRESENTABLE for an inner array."""
    at, end = 1, len(text) - 1
    while at < end:
        if text[at] == "{":
            yield UNREPRESENTABLE
            return
        if text[at] == '"':
            value, at = "", at + 1
            while text[at] != '"':
                at += text[at] == "\\"
                value += text[at]
                at += 1
            yield value
            at += 2
        else:
            stop = text.find(",", at)
            stop = end if stop < 0 else stop
            yield None if text[at:stop] == "NULL" else text[at:stop]
            at = stop + 1


def shown(value: Any) -> str:
    """A value so that two are the same text only if they are exactly the same."""
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else struct.pack(">d", value).hex()
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, list):
        return "[" + ", ".join(map(shown, value)) + "]"
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC).isoformat()
    return repr(value)


# --- kinds --------------------------------------------------------------------------------------------------------------------------


def array_of(kind: Kind, *, key: Callable[[int], str] | None = None, big: Draw | None = None) -> Kind:
    def draw(random: Random) -> str:
        def element() -> str:
            return "NULL" if random.random() < 0.2 else f"({kind.draw(random)})::{kind.sql}"

        shape = random.random()
        if shape < 0.1:
            return f"ARRAY[[{element()}, {element()}], [{element()}, {element()}]]"
        if shape < 0.2:
            return f"array_fill({element()}::{kind.sql}, ARRAY[2], ARRAY[{random.choice([0, 2, -5])}])"
        return f"ARRAY[{', '.join(element() for _ in range(random.randint(0, 5)))}]"

    return Kind(sql=f"{kind.sql}[]", held=held_array(kind.held), draw=draw, key=key, big=big)


BOOLEAN = Kind(sql="boolean", held=lambda text: {"t": True, "f": False}[text], draw=one_of("t", "f"))
SMALLINT = Kind(
    sql="smallint", held=int, draw=integers(16), key=lambda n: literal(str(n - 3)), wider=("integer", "bigint"), external=False
)
INTEGER = Kind(sql="integer", held=int, draw=integers(32), key=lambda n: literal(str(37 * n - 100)), wider=("bigint",))
BIGINT = Kind(sql="bigint", held=int, draw=integers(64), key=lambda n: literal(str(n * 2**61 % 2**63 - 2**62 + n)))
REAL = Kind(sql="real", held=held_real, draw=one_of(*REALS), wider=("double precision",))
DOUBLE = Kind(
    sql="double precision",
    held=float,
    draw=one_of(*DOUBLES),
    key=lambda n: literal(["NaN", "-0", "Infinity", "-Infinity", "5e-324"][n] if n < 5 else str(n / 3)),
)
MONEY = Kind(
    sql="numeric(10,2)",
    held=held_numeric,
    draw=decimals(10, 2, "NaN"),
    key=lambda n: literal(str(Decimal(n - 2) / 4)),
    wider=("numeric(20,2)",),
)
NUMERIC = Kind(
    sql="numeric",
    held=same,
    draw=one_of(*NUMERICS),
    key=lambda n: literal(["NaN", "Infinity", "-0.00", "1e-20", "1e50"][n] if n < 5 else f"{n}.0"),
    big=lambda random: f"repeat({literal(str(random.randint(100, 999)))}, {random.randint(2500, 5000)})::numeric",
)
TEXT = Kind(
    sql="text",
    held=same,
    draw=any_text,
    key=lambda n: literal(["", " ", "NULL", "ü", "a:1", "a", "'"][n] if n < 7 else f"key {n}"),
    big=hexadecimal,
)
VARCHAR = Kind(
    sql="varchar(20)",
    held=same,
    draw=short_text(20),
    key=lambda n: literal(["", "a ", "a"][n] if n < 3 else f"v{n}"),
    wider=("text", "varchar(40)"),
)
CHAR = Kind(sql="char(5)", held=same, draw=short_text(5), key=lambda n: literal(f"{n}"))
PADDED = replace(CHAR, sql="char(3000)", big=lambda random: literal(str(random.getrandbits(40))))
BYTEA = Kind(
    sql="bytea",
    held=lambda text: bytes.fromhex(text[2:]),
    draw=byte_strings,
    key=lambda n: literal("\\x" + ("00" * n if n < 4 else f"{n:04x}")),
    big=lambda random: f"decode({hexadecimal(random)}, 'hex') || decode({hexadecimal(random)}, 'hex')",
)
DATE = Kind(sql="date", held=held_date, draw=days, key=lambda n: f"date '2024-02-27' + {n * n}")
TIME = Kind(
    sql="time(3)", held=held_time, draw=one_of(*TIMES), key=lambda n: f"time '23:59:59.999' - interval '{n} ms'", wider=("time",)
)
TIMESTAMP = Kind(
    sql="timestamp",
    held=held_timestamp,
    draw=moments,
    key=lambda n: f"timestamp '9999-12-31 23:59:59.999999' - interval '{n} us'",
)
TIMESTAMPTZ = Kind(
    sql="timestamptz(3)",
    held=held_timestamptz,
    draw=moments,
    key=lambda n: f"timestamptz '0001-01-01 00:00:00+00' + interval '{n} ms'",
    wider=("timestamptz",),
)
INTERVAL = Kind(
    sql="interval", held=same, draw=one_of(*INTERVALS), key=lambda n: literal(f"{n // 2} days {n % 2 * 24} hours {n} s")
)
UUID = Kind(sql="uuid", held=same, draw=uuids, key=lambda n: literal(f"{n * 2**100 % 2**128 + n:032x}"))
JSON = Kind(sql="json", held=same, draw=one_of(*JSONS), big=lambda random: f"json_build_object('a', {hexadecimal(random)})")
JSONB = Kind(
    sql="jsonb",
    held=same,
    draw=one_of(*JSONS),
    key=lambda n: literal(f'[{n}, "{n}"]'),
    big=lambda random: f"jsonb_build_object('a', {hexadecimal(random)}, 'ü', null)",
)
MOOD = Kind(sql="mood", held=same, draw=one_of("sad", "ok", 'very, "happy"', "", "NULL"))
PRICE = Kind(sql="price", held=held_numeric, draw=one_of("0", "1.5", "99999999.99", "NaN"), key=lambda n: literal(str(n)))
LABEL = Kind(sql="short_label", held=same, draw=short_text(19), key=lambda n: literal(f"l{n}"))
LONGER = replace(TEXT, sql="longer")
PAIR = Kind(
    sql="pair",
    held=same,
    draw=lambda random: random.choice(
        ["ROW(NULL, NULL)", "ROW(1, '')", f"ROW({random.randint(0, 9)}, {any_text(random)})", "ROW(NULL, 'a,\"b')"]
    ),
    big=lambda random: f"ROW(1, {hexadecimal(random)})",
)
OTHERS = tuple(
    Kind(sql=sql, held=int if sql == "oid" else same, draw=one_of(*texts))
    for sql, texts in {
        "oid": ("0", "4294967295"),
        "inet": ("10.0.0.1", "10.0.0.0/8", "::1"),
        "timetz": ("24:00:00-08", "12:00:00.1+02"),
        "int4range": ("[1,5)", "empty", "(,)"),
        "bit varying(9)": ("101", "", "111111111"),
        '"char"': ("x", ""),
        "name": ("pg_class", ""),
        "xid8": ("0", "18446744073709551615"),
        "point": ("(0.1,-0)",),
        "tsvector": ("fat:1A cat:2",),
        "box[]": ("{(1,1),(0,0);(2,2),(1,1)}",),
    }.items()
)
ARRAYS = (
    array_of(INTEGER, key=lambda n: literal(f"{{{n},NULL}}" if n else "{}"), big=big_array("1234567", "NULL", "'7'")),
    array_of(
        TEXT,
        key=lambda n: (
            ["'{}'", "ARRAY['a', 'b']", "ARRAY['a, b']", "ARRAY[NULL]", "'{\"NULL\"}'", "'{\"\"}'"][n]
            if n < 6
            else f"ARRAY['k{n}']"
        ),
        big=big_texts,
    ),
    array_of(DATE, big=big_array("2024-02-29", "'2024-02-28'", "'infinity'", "NULL")),
    array_of(MONEY, big=big_array("1.50", "'NaN'", "NULL", "'2'")),
    array_of(NUMERIC),
    array_of(BOOLEAN),
    array_of(DOUBLE),
    array_of(BYTEA),
    array_of(replace(TIME, sql="time")),
    array_of(TIMESTAMP),
    array_of(
        replace(TIMESTAMPTZ, sql="timestamptz"), big=big_array("2024-02-29 12:00+00", "'infinity'", "'2024-01-01 00:00+00'")
    ),
    array_of(INTERVAL),
    array_of(UUID, big=big_array("12345678-9abc-def0-1234-56789abcdef0", "NULL")),
    array_of(JSONB),
    array_of(MOOD),
    array_of(PRICE),
    array_of(PAIR),
)
SCALARS = (
    *(
        BOOLEAN,
        SMALLINT,
        INTEGER,
        BIGINT,
        REAL,
        DOUBLE,
        MONEY,
        NUMERIC,
        TEXT,
        VARCHAR,
        CHAR,
        PADDED,
        BYTEA,
        DATE,
        TIME,
        TIMESTAMP,
    ),
    *(TIMESTAMPTZ, INTERVAL, UUID, JSON, JSONB, MOOD, PRICE, LABEL, LONGER, PAIR),
    *(
        Kind(sql=f"numeric({p},{s})", held=held_numeric, draw=decimals(p, s, "NaN"))
        for p, s in [(38, 10), (5, 0), (3, -2), (3, 5), (38, 38)]
    ),
    *(Kind(sql=f"numeric({p},{s})", held=same, draw=decimals(p, s, "NaN")) for p, s in [(39, 2), (38, -1)]),
)
OF_ANY_LENGTH = tuple(kind for kind in (*SCALARS, *ARRAYS) if kind.big is not None)
KEYS = tuple(kind for kind in (*SCALARS, *ARRAYS) if kind.key is not None)
LONG_KEY = replace(TEXT, key=lambda n: f"rpad('{n}', 2100 + {n}, md5('{n}'))")
"""A key so long that it can lie outside its row, and is then not sent again when it did not change."""
ALL = (*SCALARS, *ARRAYS, *OTHERS)


def widened(kind: Kind, random: Random) -> Kind:
    """The kind that a column becomes by an ALTER that changes no value."""
    name = random.choice(kind.wider)
    return replace(kind, sql=name, wider=(), held=float if name == "double precision" else kind.held)


def of_source(texts: Sequence[str | None], kinds: Sequence[Kind]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """What the lake has for a row with these texts, shown; and which columns are unrepresentable."""
    values = [None if text is None else kind.held(text) for text, kind in zip(texts, kinds, strict=True)]
    misfits = tuple(number for number, value in enumerate(values) if value is UNREPRESENTABLE)
    return tuple(shown(None if value is UNREPRESENTABLE else value) for value in values), misfits
