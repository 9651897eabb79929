"""time without time zone → time."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.types import TimeType

from headrace.source.postgres.types import calendar
from headrace.source.postgres.types.facts import TypeFacts
from headrace.source.postgres.types.type_mapping import Fitted, TypeMapping, same


def copied(column: pa.Array) -> Fitted:
    latest = pc.max(column.cast(pa.int64())).as_py()
    if latest is None or latest < calendar.US_A_DAY:
        return Fitted(values=column)
    misfit = column.cast(pa.int64()).fill_null(0).to_numpy() >= calendar.US_A_DAY
    return calendar.split(column, misfit, ["24:00:00"] * int(misfit.sum()))  # nothing lies beyond it


TIME = TypeMapping(
    iceberg=TimeType(),
    arrow=pa.time64("us"),
    exact="every time before 24:00:00, which itself is unrepresentable",
    typed_sql=lambda x: f"CASE WHEN {x} < '24' THEN TRY_CAST({x} AS TIME) END",
    copy_sql=same,
    copied_values=copied,
    canonical_source_sql=lambda x: f"('x' || encode(time_send({x}), 'hex'))::bit(64)::bigint::text",
    canonical_lake_sql=lambda x: f"epoch_us({x})::VARCHAR",
    source_representable_sql=lambda x: f"({x}) < time '24:00'",
)


def time(_: TypeFacts) -> TypeMapping:
    return TIME
