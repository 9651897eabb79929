"""PostgreSQL as a source: first copy at an exported snapshot, then logical decoding (pgoutput) from a replication slot."""
