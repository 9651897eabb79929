"""The manifests' Avro schemas are those that PyIceberg derives from the specification."""

from __future__ import annotations

from typing import Any

import pytest
from pyiceberg.manifest import MANIFEST_LIST_FILE_SCHEMAS, data_file_with_partition, manifest_entry_schema_with_data_file
from pyiceberg.types import IntegerType, NestedField, StringType, StructType
from pyiceberg.utils.schema_conversion import AvroSchemaConversion

from headrace.lake.manifest_schemas import LIST_SCHEMA, entry_schema


def undocumented(schema: Any) -> Any:
    """An Avro schema without its documentation."""
    if isinstance(schema, dict):
        return {name: undocumented(value) for name, value in schema.items() if name != "doc"}
    return [undocumented(one) for one in schema] if isinstance(schema, list) else schema


@pytest.mark.parametrize(
    ("partition", "fields"),
    [
        (None, []),
        ((1000, "hour", "int"), [NestedField(1000, "hour", IntegerType(), required=False)]),
        ((1001, "pipeline", "string"), [NestedField(1001, "pipeline", StringType(), required=False)]),
    ],
    ids=["unpartitioned", "by hour", "by text"],
)
def test_a_manifest_entry(partition: tuple[int, str, str] | None, fields: list[NestedField]) -> None:
    entry = manifest_entry_schema_with_data_file(2, data_file_with_partition(StructType(*fields), 2))
    assert entry_schema(partition) == undocumented(AvroSchemaConversion().iceberg_to_avro(entry, schema_name="manifest_entry"))


def test_a_manifest_list() -> None:
    expected = AvroSchemaConversion().iceberg_to_avro(MANIFEST_LIST_FILE_SCHEMAS[2], schema_name="manifest_file")
    assert undocumented(expected) == LIST_SCHEMA
