"""timestamp → timestamp, timestamp with time zone → timestamptz (UTC): microseconds, from year 1 to year 9999."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.types import IcebergType, TimestampType, TimestamptzType

from headrace.source.postgres.types import calendar
from headrace.source.postgres.types.facts import TypeFacts
from headrace.source.postgres.types.type_mapping import Fitted, TypeMapping, same

FIRST_US = -719_162 * calendar.US_A_DAY
LAST_US = 2_932_897 * calendar.US_A_DAY - 1


def _copied(column: pa.Array, zone: str) -> Fitted:
    """ADBC adds the distance of the epochs to PostgreSQL's number and wraps around: what is far lands far outside our years."""
    numbers = column.cast(pa.int64())
    limits = pc.min_max(numbers).as_py()
    if limits["min"] is None or (limits["min"] >= FIRST_US and limits["max"] <= LAST_US):
        return Fitted(values=column)
    us = numbers.fill_null(0).to_numpy()
    misfit = (us < FIRST_US) | (us > LAST_US)
    since_2000 = (us[misfit].view(np.uint64) - np.uint64(calendar.US_TO_2000)).view(np.int64)  # wraps back
    return calendar.split(column, misfit, calendar.timestamp_text(since_2000, zone=zone))


def _mapping(iceberg: IcebergType, arrow: pa.DataType, lake: str, source: str, zone: str) -> TypeMapping:
    # DuckDB reads infinity and far years as values of its own, above and below all others; BC it does not read.
    between = f"{lake} '0001-01-01 00:00:00{zone}' AND {lake} '9999-12-31 23:59:59.999999{zone}'"
    return TypeMapping(
        iceberg=iceberg,
        arrow=arrow,
        exact="every microsecond of the years 1 to 9999"
        + (" (UTC)" if zone else "")
        + "; others, BC and the infinities are unrepresentable",
        typed_sql=lambda x: f"CASE WHEN TRY_CAST({x} AS {lake}) BETWEEN {between} THEN TRY_CAST({x} AS {lake}) END",
        copy_sql=same,
        copied_values=lambda column: _copied(column, zone),
        canonical_source_sql=lambda x: (
            f"(('x' || encode({source}_send({x}), 'hex'))::bit(64)::bigint + {calendar.US_TO_2000})::text"
        ),
        canonical_lake_sql=lambda x: f"epoch_us({x})::VARCHAR",
        source_representable_sql=lambda x: (
            f"({x}) >= {source} '0001-01-01 00:00:00{zone}' AND ({x}) < {source} '10000-01-01 00:00:00{zone}'"
        ),
    )


TIMESTAMP = _mapping(TimestampType(), pa.timestamp("us"), "TIMESTAMP", "timestamp", "")
TIMESTAMPTZ = _mapping(TimestamptzType(), pa.timestamp("us", tz="UTC"), "TIMESTAMPTZ", "timestamptz", "+00")


def timestamp(_: TypeFacts) -> TypeMapping:
    return TIMESTAMP


def timestamptz(_: TypeFacts) -> TypeMapping:
    return TIMESTAMPTZ
