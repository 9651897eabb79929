-- The publications %(names)s with the tables named in them. Columns that came with PostgreSQL 15 and 18 are read through to_jsonb,
-- which also works where they do not exist.
SELECT p.pubname AS name,
       pg_catalog.pg_get_userbyid(p.pubowner) AS owner,
       pg_catalog.pg_has_role(p.pubowner, 'USAGE') AS owned,
       p.puballtables AS all_tables,
       concat_ws(', ', CASE WHEN p.pubinsert THEN 'insert' END, CASE WHEN p.pubupdate THEN 'update' END,
                       CASE WHEN p.pubdelete THEN 'delete' END, CASE WHEN p.pubtruncate THEN 'truncate' END) AS publish,
       p.pubviaroot AS via_root,
       coalesce(to_jsonb(p) ->> 'pubgencols', 'n') NOT IN ('n', 'false') AS generated_columns,
       (SELECT coalesce(json_agg(json_build_object(
                   'schema', n.nspname, 'name', c.relname,
                   'row_filter', coalesce(to_jsonb(r) ->> 'prqual', '') <> '',
                   'column_list', coalesce(to_jsonb(r) ->> 'prattrs', '') <> '') ORDER BY n.nspname, c.relname), '[]')
          FROM pg_catalog.pg_publication_rel r
          JOIN pg_catalog.pg_class c ON c.oid = r.prrelid
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE r.prpubid = p.oid) AS tables,
       -- also those that come with FOR ALL TABLES and FOR TABLES IN SCHEMA
       (SELECT coalesce(json_agg(json_build_object('schema', t.schemaname, 'name', t.tablename)), '[]')
          FROM pg_catalog.pg_publication_tables t WHERE t.pubname = p.pubname) AS published
  FROM pg_catalog.pg_publication p
 WHERE p.pubname = ANY(%(names)s)
 ORDER BY p.pubname
