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
), files_of AS (
    SELECT t.root, jsonb_object_agg(c.oid, c.relfilenode::bigint) AS files
      FROM tree t JOIN pg_catalog.pg_class c ON c.oid = t.oid
     WHERE t.relkind <> 'p'
     GROUP BY t.root
), columns_of AS (
    SELECT attrelid, jsonb_object_agg(attnum, jsonb_build_array(xmin::text::bigint, atttypid::bigint, atttypmod)) AS columns
      FROM attributes
     GROUP BY attrelid
), labels_of AS (
    SELECT a.attrelid, jsonb_object_agg(e.oid, e.enumlabel) AS labels
      FROM attributes a JOIN types u ON u.used = a.atttypid JOIN pg_catalog.pg_enum e ON e.enumtypid = u.oid
     GROUP BY a.attrelid
), composites AS (
    SELECT u.used, t.oid, string_agg(a.attnum::text, ',' ORDER BY a.attnum) AS numbers
      FROM types u
      JOIN pg_catalog.pg_type t ON t.oid = u.oid AND t.typtype = 'c'
      JOIN pg_catalog.pg_attribute a ON a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
     GROUP BY u.used, t.oid
), composites_of AS (
    SELECT a.attrelid, jsonb_object_agg(c.oid, c.numbers) AS composites
      FROM attributes a JOIN composites c ON c.used = a.atttypid
     GROUP BY a.attrelid
)
SELECT w.oid::bigint AS oid,
       jsonb_build_object('files', f.files, 'columns', c.columns, 'labels', l.labels, 'composites', p.composites)::text AS state
  FROM wanted w
  LEFT JOIN files_of f ON f.root = w.oid
  LEFT JOIN columns_of c ON c.attrelid = w.oid
  LEFT JOIN labels_of l ON l.attrelid = w.oid
  LEFT JOIN composites_of p ON p.attrelid = w.oid
