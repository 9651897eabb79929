-- Of the tables %(oids)s, one row each: what changes when their rows change without a word in the log. Waits for no lock of a table.
WITH RECURSIVE wanted AS (
    SELECT c.oid, c.relkind FROM pg_catalog.pg_class c WHERE c.oid = ANY(%(oids)s::oid[])
), tree (root, oid, relkind) AS (
    SELECT oid, oid, relkind FROM wanted
    UNION ALL
    SELECT t.root, c.oid, c.relkind
      FROM tree t
      JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid
      JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
     WHERE t.relkind = 'p'
), attributes AS (
    SELECT a.attrelid, a.attnum, a.xmin, a.atttypid, a.atttypmod
      FROM wanted w
      JOIN pg_catalog.pg_attribute a ON a.attrelid = w.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
), types (used, oid) AS (
    -- the columns' types, and all that they are made of
    SELECT DISTINCT atttypid, atttypid FROM attributes
    UNION
    SELECT u.used, below.oid
      FROM types u
      JOIN pg_catalog.pg_type t ON t.oid = u.oid,
           LATERAL (SELECT t.typelem WHERE t.typelem <> 0
                    UNION ALL
                    SELECT t.typbasetype WHERE t.typtype = 'd'
                    UNION ALL
                    SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE t.typtype = 'r' AND r.rngtypid = t.oid
                    UNION ALL
                    SELECT a.atttypid FROM pg_catalog.pg_attribute a
                     WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) below (oid)
), labels AS (
    SELECT u.used, e.oid, e.enumlabel FROM types u JOIN pg_catalog.pg_enum e ON e.enumtypid = u.oid
), attributes_of_types AS (
    SELECT u.used, t.oid, string_agg(a.attnum::text, ',' ORDER BY a.attnum) AS numbers
      FROM types u
      JOIN pg_catalog.pg_type t ON t.oid = u.oid AND t.typtype = 'c'
      JOIN pg_catalog.pg_attribute a ON a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
     GROUP BY u.used, t.oid
)
SELECT w.oid::bigint AS oid,
       jsonb_build_object(
           'files', (SELECT jsonb_object_agg(c.oid, c.relfilenode::bigint)
                       FROM tree t JOIN pg_catalog.pg_class c ON c.oid = t.oid WHERE t.root = w.oid AND t.relkind <> 'p'),
           'columns', (SELECT jsonb_object_agg(a.attnum, jsonb_build_array(a.xmin::text::bigint, a.atttypid::bigint, a.atttypmod))
                         FROM attributes a WHERE a.attrelid = w.oid),
           'labels', (SELECT jsonb_object_agg(l.oid, l.enumlabel)
                        FROM labels l WHERE l.used IN (SELECT a.atttypid FROM attributes a WHERE a.attrelid = w.oid)),
           'composites', (SELECT jsonb_object_agg(c.oid, c.numbers)
                            FROM attributes_of_types c WHERE c.used IN (SELECT a.atttypid FROM attributes a WHERE a.attrelid = w.oid))
       )::text AS state
  FROM wanted w
