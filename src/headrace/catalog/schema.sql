-- The catalog's tables, the same for SQLite and PostgreSQL. Times are microseconds since 1970 (UTC).
-- A row of pointers or namespaces holds from version from_version up to, not including, to_version (null: still holds):
-- the state at version v is every row with from_version <= v and (to_version is null or to_version > v).
-- Levels of a namespace are joined by the unit separator (U+001F), as in the REST specification's paths.

create table if not exists catalog_settings (
    key text primary key,
    value text not null
);

create table if not exists versions (
    number bigint primary key,
    committed_at bigint not null
);
create index if not exists versions_by_time on versions (committed_at);

create table if not exists namespaces (
    name text not null,
    properties text not null,
    from_version bigint not null,
    to_version bigint,
    primary key (name, from_version)
);
create unique index if not exists namespaces_now on namespaces (name) where to_version is null;

create table if not exists pointers (
    namespace text not null,
    name text not null,
    kind text not null check (kind in ('table', 'view')),
    metadata_location text not null,
    from_version bigint not null,
    to_version bigint,
    primary key (namespace, name, from_version)
);
create unique index if not exists pointers_now on pointers (namespace, name) where to_version is null;
-- For the state at a recent version: what still holds, and the little that has ended since.
create index if not exists pointers_ended on pointers (to_version);

create table if not exists leases (
    id text primary key,
    version bigint not null,
    expires_at bigint not null
);

create table if not exists notes (
    key text primary key,
    value text not null
);
