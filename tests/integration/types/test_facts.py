"""What is known of the built-in types without asking is what every server's catalog says."""

from __future__ import annotations

from headrace.source.postgres.types import builtin_facts
from headrace.source.postgres.types.facts import BUILTIN, MULTIRANGES, RANGES
from tests.conftest import Database


def test_names_array_types_and_delimiters_are_the_catalogs(types_database: Database) -> None:
    known = {**BUILTIN, **RANGES, **MULTIRANGES}
    query = "SELECT oid::int, format_type(oid, -1), typarray::int, typdelim, typtype FROM pg_type WHERE oid::int = ANY(%s)"
    found = types_database.rows(query, list(known))

    assert len(found) == len(known)
    for oid, name, array, delimiter, kind in found:
        facts, of_array = builtin_facts(oid), builtin_facts(array)
        assert facts is not None
        assert of_array is not None
        assert (facts.name, facts.delimiter) == (name, delimiter)
        assert of_array.element == facts
        assert facts.kind == {"b": "base", "r": "range", "m": "multirange"}[kind]


def test_modifiers_are_written_as_the_server_writes_them(types_database: Database) -> None:
    intervals = ["year", "month", "day", "hour", "minute", "second", "second(3)", "year to month", "day to hour", "day to minute"]
    intervals += ["day to second", "day to second(0)", "hour to minute", "hour to second", "minute to second"]
    types = [
        *(
            "numeric(10,2)",
            "numeric(3,-2)",
            "numeric(3,5)",
            "numeric(1000,1000)",
            "numeric(5)",
            "char(5)",
            "char",
            "bpchar",
            "varchar(7)",
        ),
        *(
            "bit",
            "bit(3)",
            "varbit(9)",
            "varbit",
            "time(0)",
            "timetz(3)",
            "timestamp(6)",
            "timestamptz(1)",
            "interval",
            "interval(2)",
        ),
        *(f"interval {fields}" for fields in intervals),
    ]
    for type_ in types:
        for suffix in ("", "[]"):
            types_database.execute("DROP TABLE IF EXISTS modified", f"CREATE TABLE modified (x {type_}{suffix})")
            [(oid, typmod, name)] = types_database.rows(
                "SELECT atttypid::int, atttypmod, format_type(atttypid, atttypmod) FROM pg_attribute"
                " WHERE attrelid = 'modified'::regclass AND attnum = 1"
            )
            facts = builtin_facts(oid, typmod)
            assert facts is not None
            assert facts.name == name


def test_a_type_of_an_extension_is_not_known_without_asking() -> None:
    assert builtin_facts(16_400) is None
