-- What the system catalog says of the relations %(oids)s, one row each, in one statement so that no DDL shows half.
WITH RECURSIVE wanted AS (
    SELECT c.* FROM pg_catalog.pg_class c WHERE c.oid = ANY(%(oids)s::oid[])
), attributes AS (
    SELECT a.*, w.relkind
      FROM wanted w JOIN pg_catalog.pg_attribute a ON a.attrelid = w.oid AND a.attnum > 0 AND NOT a.attisdropped
), used_types (oid, typmod) AS (
    -- the columns' types, and below them the element of each array and the base of each domain
    SELECT atttypid, atttypmod FROM attributes
    UNION
    SELECT below.*
      FROM used_types u
      JOIN pg_catalog.pg_type t ON t.oid = u.oid,
           LATERAL (SELECT e.oid, u.typmod FROM pg_catalog.pg_type e WHERE e.oid = t.typelem AND e.typarray = t.oid
                    UNION ALL
                    SELECT t.typbasetype, t.typtypmod WHERE t.typtype = 'd') below (oid, typmod)
), types AS (
    SELECT json_agg(json_build_object(
               'oid', t.oid::bigint, 'typmod', u.typmod, 'name', pg_catalog.format_type(t.oid, u.typmod),
               'type', t.typtype, 'delimiter', t.typdelim,
               'element', CASE WHEN e.typarray = t.oid THEN e.oid::bigint END,
               'base', CASE WHEN t.typtype = 'd' THEN t.typbasetype::bigint END, 'base_typmod', t.typtypmod)) AS all
      FROM used_types u
      JOIN pg_catalog.pg_type t ON t.oid = u.oid
      LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem AND t.typelem <> 0
)
SELECT w.oid::bigint AS oid,
       n.nspname AS schema,
       w.relname AS name,
       w.relkind AS kind,
       w.relpersistence AS persistence,
       w.relreplident AS identity,
       pg_catalog.pg_get_userbyid(w.relowner) AS owner,
       coalesce(pg_catalog.pg_relation_filenode(w.oid), 0)::bigint AS relfilenode,
       w.relrowsecurity AS row_security,
       w.relforcerowsecurity AS force_row_security,
       w.relispartition AS is_partition,
       (SELECT coalesce(json_agg(json_build_object(
                   'attnum', a.attnum, 'name', a.attname, 'oid', a.atttypid::bigint, 'typmod', a.atttypmod, 'not_null', a.attnotnull,
                   'generated', a.attgenerated, 'default', a.atthasdef OR a.attidentity <> '',
                   -- of a partitioned table it is its partitions that keep the value
                   'missing', a.atthasmissing OR a.relkind = 'p' AND EXISTS (
                       SELECT FROM pg_catalog.pg_partition_tree(w.oid) p JOIN pg_catalog.pg_attribute pa ON pa.attrelid = p.relid
                        WHERE pa.attname = a.attname AND pa.atthasmissing)
                   ) ORDER BY a.attnum), '[]')
          FROM attributes a WHERE a.attrelid = w.oid) AS columns,
       (SELECT ARRAY(SELECT a.attname::text FROM unnest(i.indkey[0:i.indnkeyatts - 1]) WITH ORDINALITY k (attnum, place)
                       JOIN attributes a ON a.attrelid = w.oid AND a.attnum = k.attnum ORDER BY k.place)
          FROM pg_catalog.pg_index i WHERE i.indrelid = w.oid AND i.indisprimary AND i.indisvalid) AS primary_key,
       (SELECT NOT i.indimmediate FROM pg_catalog.pg_index i WHERE i.indrelid = w.oid AND i.indisprimary) AS primary_key_deferrable,
       (SELECT ARRAY(SELECT a.attname::text FROM unnest(i.indkey[0:i.indnkeyatts - 1]) WITH ORDINALITY k (attnum, place)
                       JOIN attributes a ON a.attrelid = w.oid AND a.attnum = k.attnum ORDER BY k.place)
          FROM pg_catalog.pg_index i WHERE i.indrelid = w.oid AND i.indisreplident AND i.indisvalid) AS identity_index,
       CASE WHEN w.relkind = 'p' THEN
            (SELECT coalesce(json_agg(json_build_object(
                        'schema', pn.nspname, 'name', pc.relname, 'kind', pc.relkind, 'persistence', pc.relpersistence,
                        'identity', pc.relreplident, 'owner', pg_catalog.pg_get_userbyid(pc.relowner),
                        'rows', pc.reltuples, 'pages', pc.relpages) ORDER BY pn.nspname, pc.relname), '[]')
               FROM pg_catalog.pg_partition_tree(w.oid) p
               JOIN pg_catalog.pg_class pc ON pc.oid = p.relid
               JOIN pg_catalog.pg_namespace pn ON pn.oid = pc.relnamespace
              WHERE p.isleaf) ELSE '[]' END AS partitions,
       w.reltuples AS rows,
       w.relpages::bigint AS pages,
       pg_catalog.current_setting('block_size')::bigint AS block_size,
       -- of all the relations together, so in the first row only
       CASE WHEN row_number() OVER (ORDER BY n.nspname COLLATE "C", w.relname COLLATE "C") = 1
            THEN (SELECT types.all FROM types) END AS types
  FROM wanted w
  JOIN pg_catalog.pg_namespace n ON n.oid = w.relnamespace
 ORDER BY n.nspname COLLATE "C", w.relname COLLATE "C"
