"""Run by the spark tests in Spark's own Python environment: statements from standard input against a served catalog.

The input is JSON: ``{"jars": [...], "catalogs": {name: {option: value}}, "statements": [...]}``. The last line of the output is a
JSON list with each statement's rows as lists, or ``{"error": …}`` for one that failed.
"""

import json
import sys

from pyspark.sql import SparkSession

asked = json.load(sys.stdin)
builder = (
    SparkSession.builder.master("local[2]")
    .config("spark.jars", ",".join(asked["jars"]))
    .config("spark.sql.extensions", "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions")
    .config("spark.ui.enabled", "false")
    .config("spark.driver.host", "127.0.0.1")
    .config("spark.driver.bindAddress", "127.0.0.1")
    .config("spark.sql.session.timeZone", "UTC")
    .config("spark.sql.shuffle.partitions", "2")
    .config("spark.sql.catalogImplementation", "in-memory")
)
for name, options in asked["catalogs"].items():
    key = f"spark.sql.catalog.{name}"
    builder = builder.config(key, "org.apache.iceberg.spark.SparkCatalog").config(f"{key}.type", "rest")
    for option, value in options.items():
        builder = builder.config(f"{key}.{option}", value)
spark = builder.getOrCreate()
results = []
for statement in asked["statements"]:
    try:
        results.append([list(row) for row in spark.sql(statement).collect()])
    except Exception as error:
        results.append({"error": str(error)})
sys.stdout.write("\n" + json.dumps(results, default=str) + "\n")
spark.stop()
