"""PostgreSQL's text of dates and timestamps that lie outside the lake's years; they are rare, so plain rather than fast."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.source.postgres.types.type_mapping import Fitted

DAYS_TO_2000 = 10_957
US_TO_2000 = DAYS_TO_2000 * 86_400_000_000
US_A_DAY = 86_400_000_000


def split(column: pa.Array, misfit: npt.NDArray[np.bool_], texts: list[str]) -> Fitted:
    """``column`` with nulls where ``misfit``, and the texts (one for each misfit, in order) at those places."""
    values = pa.array(np.ones(len(column), np.bool_))
    keep = pa.compute.and_(values, pa.array(~misfit))
    spread = np.full(len(column), None, dtype=object)
    spread[misfit] = texts
    return Fitted(values=pa.compute.if_else(keep, column, pa.scalar(None, column.type)), misfits=pa.array(spread, pa.string()))


def date_text(since_2000: npt.NDArray[np.int32]) -> list[str]:
    """PostgreSQL's text of its day numbers: ``0044-03-15 BC``, ``10000-01-01``, ``infinity``."""
    limits = np.iinfo(np.int32)
    infinities = {int(limits.max): "infinity", int(limits.min): "-infinity"}
    return [infinities.get(day) or "".join(_day(day)) for day in since_2000.tolist()]


def timestamp_text(since_2000: npt.NDArray[np.int64], *, zone: str = "") -> list[str]:
    """PostgreSQL's text of its microsecond numbers; ``zone`` (``+00``) stands before an era."""
    limits = np.iinfo(np.int64)
    infinities = {int(limits.max): "infinity", int(limits.min): "-infinity"}
    return [infinities.get(us) or _moment(us, zone) for us in since_2000.tolist()]


def _moment(us: int, zone: str) -> str:
    day, of_day = divmod(us, US_A_DAY)
    seconds, fraction = divmod(of_day, 1_000_000)
    text, era = _day(day)
    clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    decimals = f".{fraction:06}".rstrip("0") if fraction else ""
    return f"{text} {clock}{decimals}{zone}{era}"


def _day(since_2000: int) -> tuple[str, str]:
    """Year, month and day of the proleptic Gregorian calendar, and `` BC`` or nothing. The year before 1 is 1 BC."""
    day = np.datetime64(since_2000 + DAYS_TO_2000, "D")
    year = int(day.astype("M8[Y]").astype(np.int64)) + 1970
    months = int(day.astype("M8[M]").astype(np.int64))
    month = months % 12 + 1
    of_month = int((day - day.astype("M8[M]").astype("M8[D]")).astype(np.int64)) + 1
    era = " BC" if year <= 0 else ""
    return f"{1 - year if year <= 0 else year:04}-{month:02}-{of_month:02}", era
