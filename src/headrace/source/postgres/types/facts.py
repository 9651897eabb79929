"""What has to be known of a PostgreSQL type to map it, and that knowledge for the types every server has under the same oid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["base", "enum", "domain", "array", "composite", "range", "multirange", "pseudo"]


@dataclass(frozen=True, kw_only=True)
class TypeFacts:
    """A type as a column uses it.

    ``kind`` is ``array`` for a true array only: the type stands in ``pg_type.typarray`` of its element type (``int2vector`` and
    ``oidvector`` do not). An array's ``typmod`` is that of its elements and is repeated in ``element``; a domain's ``base`` has
    the domain's own ``typtypmod``.
    """

    oid: int
    name: str
    """As ``format_type(oid, typmod)`` says it: ``numeric(10,2)``, ``timestamp(3) with time zone``, ``text[]``."""
    typmod: int = -1
    kind: Kind = "base"
    element: TypeFacts | None = None
    """Of an array: its element type."""
    base: TypeFacts | None = None
    """Of a domain: the type below it (maybe again a domain)."""
    delimiter: str = ","
    """``pg_type.typdelim``: what stands between this type's values in the text of an array."""


# oid: (format_type without modifier, oid of its array type). Types that a table's column may have on any server.
BUILTIN: dict[int, tuple[str, int]] = {
    16: ("boolean", 1000),
    17: ("bytea", 1001),
    18: ('"char"', 1002),
    19: ("name", 1003),
    20: ("bigint", 1016),
    21: ("smallint", 1005),
    23: ("integer", 1007),
    25: ("text", 1009),
    26: ("oid", 1028),
    27: ("tid", 1010),
    28: ("xid", 1011),
    114: ("json", 199),
    142: ("xml", 143),
    600: ("point", 1017),
    601: ("lseg", 1018),
    602: ("path", 1019),
    603: ("box", 1020),
    604: ("polygon", 1027),
    628: ("line", 629),
    650: ("cidr", 651),
    700: ("real", 1021),
    701: ("double precision", 1022),
    718: ("circle", 719),
    774: ("macaddr8", 775),
    790: ("money", 791),
    829: ("macaddr", 1040),
    869: ("inet", 1041),
    1042: ("character", 1014),
    1043: ("character varying", 1015),
    1082: ("date", 1182),
    1083: ("time without time zone", 1183),
    1114: ("timestamp without time zone", 1115),
    1184: ("timestamp with time zone", 1185),
    1186: ("interval", 1187),
    1266: ("time with time zone", 1270),
    1560: ("bit", 1561),
    1562: ("bit varying", 1563),
    1700: ("numeric", 1231),
    2205: ("regclass", 2210),
    2950: ("uuid", 2951),
    3220: ("pg_lsn", 3221),
    3614: ("tsvector", 3643),
    3615: ("tsquery", 3645),
    3802: ("jsonb", 3807),
    4072: ("jsonpath", 4073),
    5069: ("xid8", 271),
}
RANGES: dict[int, tuple[str, int]] = {
    3904: ("int4range", 3905),
    3906: ("numrange", 3907),
    3908: ("tsrange", 3909),
    3910: ("tstzrange", 3911),
    3912: ("daterange", 3913),
    3926: ("int8range", 3927),
}
MULTIRANGES: dict[int, tuple[str, int]] = {
    4451: ("int4multirange", 6150),
    4532: ("nummultirange", 6151),
    4533: ("tsmultirange", 6152),
    4534: ("tstzmultirange", 6153),
    4535: ("datemultirange", 6155),
    4536: ("int8multirange", 6157),
}
BOX = 603
_ELEMENT_OF = {array: oid for table in (BUILTIN, RANGES, MULTIRANGES) for oid, (_, array) in table.items()}
_INTERVAL_FIELDS = {
    1 << 2: " year",
    1 << 1: " month",
    1 << 3: " day",
    1 << 10: " hour",
    1 << 11: " minute",
    1 << 12: " second",
    1 << 2 | 1 << 1: " year to month",
    1 << 3 | 1 << 10: " day to hour",
    1 << 3 | 1 << 10 | 1 << 11: " day to minute",
    1 << 3 | 1 << 10 | 1 << 11 | 1 << 12: " day to second",
    1 << 10 | 1 << 11: " hour to minute",
    1 << 10 | 1 << 11 | 1 << 12: " hour to second",
    1 << 11 | 1 << 12: " minute to second",
    0x7FFF: "",
}


def builtin_facts(oid: int, typmod: int = -1) -> TypeFacts | None:
    """The facts of a type that has this oid on every server, or None: then only the source's catalog knows it."""
    element_oid = _ELEMENT_OF.get(oid)
    if element_oid is not None:
        element = builtin_facts(element_oid, typmod)
        assert element is not None
        return TypeFacts(oid=oid, name=f"{element.name}[]", typmod=typmod, kind="array", element=element)
    if oid in BUILTIN:
        name = _with_modifier(oid, BUILTIN[oid][0], typmod)
        return TypeFacts(oid=oid, name=name, typmod=typmod, delimiter=";" if oid == BOX else ",")
    if oid in RANGES:
        return TypeFacts(oid=oid, name=RANGES[oid][0], typmod=typmod, kind="range")
    if oid in MULTIRANGES:
        return TypeFacts(oid=oid, name=MULTIRANGES[oid][0], typmod=typmod, kind="multirange")
    return None


def numeric_modifier(typmod: int) -> tuple[int, int] | None:
    """(precision, scale), None for an unconstrained numeric. The scale may be negative, or above the precision."""
    if typmod < 4:
        return None
    packed = typmod - 4
    return (packed >> 16) & 0xFFFF, ((packed & 0x7FF) ^ 1024) - 1024


def _with_modifier(oid: int, name: str, typmod: int) -> str:
    """What ``format_type`` makes of the modifier."""
    if oid == 1042 and typmod < 0:
        return "bpchar"  # "character" alone would mean character(1)
    if typmod < 0:
        return '"bit"' if oid == 1560 else name
    if oid in (1042, 1043):
        return f"{name}({typmod - 4})"
    if oid in (1560, 1562):
        return f"{name}({typmod})"
    if oid == 1700:
        modifier = numeric_modifier(typmod)
        return name if modifier is None else f"{name}({modifier[0]},{modifier[1]})"
    if oid in (1083, 1266, 1114, 1184):
        kind, _, zone = name.partition(" ")
        return f"{kind}({typmod}) {zone}"
    if oid == 1186:
        fields, precision = _INTERVAL_FIELDS.get(typmod >> 16 & 0x7FFF, ""), typmod & 0xFFFF
        return f"{name}{fields}" + ("" if precision == 0xFFFF else f"({precision})")
    return name
