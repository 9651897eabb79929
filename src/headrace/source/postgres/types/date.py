"""date → date, from year 1 to year 9999."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.types import DateType

from headrace.source.postgres.types import calendar
from headrace.source.postgres.types.facts import TypeFacts
from headrace.source.postgres.types.type_mapping import Fitted, TypeMapping, same

FIRST_DAY, LAST_DAY = -719_162, 2_932_896  # 0001-01-01 and 9999-12-31 in days since 1970


def copied(column: pa.Array) -> Fitted:
    """ADBC adds the distance of the epochs to PostgreSQL's number and wraps around: what is far lands far outside our years."""
    limits = pc.min_max(column.cast(pa.int32())).as_py()
    if limits["min"] is None or (limits["min"] >= FIRST_DAY and limits["max"] <= LAST_DAY):
        return Fitted(values=column)
    days = column.cast(pa.int32()).fill_null(0).to_numpy()
    misfit = (days < FIRST_DAY) | (days > LAST_DAY)
    since_2000 = (days[misfit].astype(np.int64) - calendar.DAYS_TO_2000).astype(np.int32)  # wraps back
    return calendar.split(column, misfit, calendar.date_text(since_2000))


DATE = TypeMapping(
    iceberg=DateType(),
    arrow=pa.date32(),
    exact="every day of the years 1 to 9999; others, BC and the infinities are unrepresentable",
    # Ten characters are a year of four digits, month and day: no infinity, no far year, no BC (DuckDB would overlook that).
    typed_sql=lambda x: f"CASE WHEN strlen({x}) = 10 THEN TRY_CAST({x} AS DATE) END",
    copy_sql=same,
    copied_values=copied,
    canonical_source_sql=lambda x: f"(({x}) - date '1970-01-01')::text",
    canonical_lake_sql=lambda x: f"(({x}) - DATE '1970-01-01')::VARCHAR",
    source_representable_sql=lambda x: f"({x}) BETWEEN date '0001-01-01' AND date '9999-12-31'",
)


def date(_: TypeFacts) -> TypeMapping:
    return DATE
