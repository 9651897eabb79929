"""The Iceberg catalog: which metadata file each table has at each version of the lake."""
