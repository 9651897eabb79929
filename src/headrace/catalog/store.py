"""The catalog: which metadata file each table has at each version, changed by commits that take effect whole or not at all."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType

from headrace import failpoint
from headrace.catalog.database import open_database, prepare
from headrace.catalog.files import MetadataFile, MetadataFiles
from headrace.catalog.history import History, microseconds, now
from headrace.catalog.metadata import Document, Requirement, Update, apply_updates, check_requirements
from headrace.catalog.pointers import (
    SEPARATOR,
    Identifier,
    Kind,
    Pointer,
    begin_namespace,
    begin_pointers,
    end_namespace,
    end_pointers,
    missing,
    namespace_properties,
    no_namespace,
    pointer_at,
    pointers_of,
    require_free,
    shown,
    state_at,
)
from headrace.catalog.refusals import AlreadyExists, BadUpdate, CommitOutcomeUnknown, NamespaceNotEmpty, NoSuchNamespace
from headrace.catalog.view_metadata import apply_view_updates, check_view_requirements
from headrace.errors import LakeUnavailable

OPTIMISTIC_TRIES = 2


@dataclass(frozen=True, kw_only=True)
class TableChange:
    """Updates to one table (or view), to be made if the requirements hold, both in the JSON form of the REST specification.

    A change without the requirement ``assert-create`` needs the table to exist. Whoever hands a change in does not change
    its values afterwards.
    """

    namespace: str
    name: str
    requirements: Sequence[Requirement] = ()
    updates: Sequence[Update] = ()
    kind: Kind = "table"

    @property
    def identifier(self) -> Identifier:
        return (self.namespace, self.name)

    @property
    def creates(self) -> bool:
        return any(requirement.get("type") == "assert-create" for requirement in self.requirements)


@dataclass(frozen=True, kw_only=True)
class LoadedTable:
    """A table (or view) at some version: where its metadata file is, and what is in it. ``metadata`` is shared: nobody may
    mutate it.
    """

    namespace: str
    name: str
    metadata_location: str
    metadata: Document = field(repr=False)
    content: bytes = field(repr=False)
    """``metadata`` as JSON."""


@dataclass(frozen=True, kw_only=True)
class Committed:
    """What a commit made: its version, and the tables that it changed as they are now."""

    version: int
    tables: Mapping[Identifier, LoadedTable]


class Catalog(History):
    """Tables, views and namespaces of one warehouse folder, at every kept version.

    Ordering: commits of all threads and processes take effect one after another, each at its own version. Atomicity: a
    commit changes all
    its tables or none. Durability: once ``commit`` has returned, it survives a crash. No commit is lost: each is made on the
    state that its requirements were checked against. Safe to use from several threads.

    Every method raises LakeUnavailable when the database or the warehouse cannot be used.
    """

    def __init__(
        self, location: Path | str, warehouse: Path, *, create: bool, timeout: float, clock: Callable[[], datetime]
    ) -> None:
        super().__init__(open_database(location, timeout=timeout, create=create), clock)
        try:
            self._files = MetadataFiles(warehouse)
            prepare(self._database, microseconds(clock()))
        except BaseException:
            self._database.close()
            raise
        self.warehouse = self._files.warehouse

    @classmethod
    def open(
        cls,
        location: Path | str,
        warehouse: Path,
        *,
        create: bool = True,
        timeout: float = 10,
        clock: Callable[[], datetime] = now,
    ) -> Catalog:
        """Open the catalog at a SQLite file's path or a ``postgresql://`` URL; make it unless ``create`` is false.

        ``timeout`` is how long to wait for another writer, in seconds.
        """
        return cls(location, warehouse, create=create, timeout=timeout, clock=clock)

    def close(self) -> None:
        self._files.close()
        self._database.close()

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # Namespaces

    def create_namespace(self, namespace: str, properties: Mapping[str, str] | None = None, *, exist_ok: bool = False) -> int:
        """The version from which on the namespace exists (the latest one if it did and ``exist_ok``). Raises
        AlreadyExists, NoSuchNamespace for a missing parent.
        """
        levels = _checked_levels(namespace)
        with self._database.write() as session:
            if namespace_properties(session, namespace) is not None:
                if exist_ok:
                    return int(session.rows("select max(number) from versions")[0][0])
                raise AlreadyExists(f"The namespace {shown(namespace)} exists already.")
            if len(levels) > 1 and namespace_properties(session, SEPARATOR.join(levels[:-1])) is None:
                raise NoSuchNamespace(f"There is no namespace {'.'.join(levels[:-1])} to create {shown(namespace)} in.")
            version = self._next_version(session).number
            begin_namespace(session, namespace, properties or {}, version)
        return version

    def namespaces(self, version: int | None = None) -> list[str]:
        """Every namespace, nested ones included, in order."""
        where, parameters = state_at(version)
        with self._database.read() as session:
            return sorted(row[0] for row in session.rows(f"select name from namespaces where {where}", parameters))

    def namespace(self, namespace: str, version: int | None = None) -> dict[str, str]:
        """The namespace's properties. Raises NoSuchNamespace."""
        with self._database.read() as session:
            found = namespace_properties(session, namespace, version)
        if found is None:
            raise no_namespace(namespace)
        return found

    def set_namespace_properties(
        self, namespace: str, updates: Mapping[str, str], removals: Sequence[str] = ()
    ) -> dict[str, str]:
        """Set and remove properties; what they were before. Raises NoSuchNamespace."""
        with self._database.write() as session:
            before = namespace_properties(session, namespace)
            if before is None:
                raise no_namespace(namespace)
            after = {key: value for key, value in {**before, **updates}.items() if key not in removals}
            if after != before:
                version = self._next_version(session).number
                end_namespace(session, namespace, version)
                begin_namespace(session, namespace, after, version)
        return before

    def drop_namespace(self, namespace: str) -> int:
        """The version from which on it is gone. Raises NoSuchNamespace, NamespaceNotEmpty."""
        with self._database.write() as session:
            if namespace_properties(session, namespace) is None:
                raise no_namespace(namespace)
            below = namespace + SEPARATOR
            held = session.rows("select name from pointers where namespace = ? and to_version is null limit 1", (namespace,))
            held += session.rows(
                "select name from namespaces where substr(name, 1, ?) = ? and to_version is null limit 1", (len(below), below)
            )
            if held:
                raise NamespaceNotEmpty(
                    f"The namespace {shown(namespace)} still holds {shown(held[0][0])}.", remedy="Drop what is in it first."
                )
            version = self._next_version(session).number
            end_namespace(session, namespace, version)
        return version

    # Tables and views

    def tables(self, namespace: str, version: int | None = None, *, kind: Kind = "table") -> list[str]:
        """Names of the namespace's tables (or views), in order. Raises NoSuchNamespace."""
        where, parameters = state_at(version)
        with self._database.read() as session:
            # The namespace hides from the planner, which would else read its whole history: the version is narrower.
            found = session.rows(
                f"select name from pointers where namespace || '' = ? and kind = ? and {where}", (namespace, kind, *parameters)
            )
            if not found and namespace_properties(session, namespace, version) is None:
                raise no_namespace(namespace)
        return sorted(row[0] for row in found)

    def load(self, namespace: str, name: str, version: int | None = None, *, kind: Kind = "table") -> LoadedTable:
        """The table (or view) as it was at ``version``, one that is kept, or as it is. Raises NoSuchTable (NoSuchView)."""
        location = self.metadata_location(namespace, name, version, kind=kind)
        return _loaded((namespace, name), self._files.read(location, kind=kind))

    def metadata_location(self, namespace: str, name: str, version: int | None = None, *, kind: Kind = "table") -> str:
        """Where its metadata file is, without reading it. Raises NoSuchTable (NoSuchView)."""
        with self._database.read() as session:
            pointer = pointer_at(session, (namespace, name), version)
        if pointer is None or pointer.kind != kind:
            raise missing(kind, namespace, name)
        return pointer.location

    def state(self, version: int | None = None) -> dict[Identifier, str]:
        """Every table at that version, with the location of its metadata file. Raises NoSuchVersion for one that is not kept."""
        if version is not None:
            self.require_version(version)
        where, parameters = state_at(version)
        with self._database.read() as session:
            found = session.rows(
                f"select namespace, name, metadata_location from pointers where kind = 'table' and {where}", parameters
            )
        return {(namespace, name): location for namespace, name, location in found}

    def preview(self, change: TableChange) -> LoadedTable:
        """What the change would make, without making it: nothing is written. Raises as ``commit``."""
        with self._database.read() as session:
            bases = pointers_of(session, [change.identifier])
            if namespace_properties(session, change.namespace) is None:
                raise no_namespace(change.namespace)
        return _loaded(change.identifier, self._draft(change, bases.get(change.identifier)))

    def commit(self, changes: Sequence[TableChange]) -> Committed:
        """Make all the changes, as one version, or none.

        Raises CommitConflict when a requirement does not hold, NoSuchTable, NoSuchNamespace, BadUpdate (nothing was
        changed in any of these), and
        CommitOutcomeUnknown when the database was lost in the middle: read again before deciding.
        """
        changes = tuple(changes)
        identifiers = [change.identifier for change in changes]
        if not changes:
            return Committed(version=self.latest_version(), tables={})
        if len(set(identifiers)) != len(identifiers):
            raise BadUpdate("A commit names a table twice. Nothing was changed.")
        # Metadata files are written before the database is locked, on the guess that nobody else commits to the same tables
        # meanwhile; after two wrong guesses, while it is locked.
        for _ in range(OPTIMISTIC_TRIES):
            with self._database.read() as session:
                bases = pointers_of(session, identifiers)
            attempt = _Attempt(self._files, [self._draft(change, bases.get(change.identifier)) for change in changes], bases)
            attempt.write()
            with suppress(_Overtaken):
                return self._swap(changes, attempt)
        return self._swap(changes, None)

    def register(self, namespace: str, name: str, metadata_location: str) -> LoadedTable:
        """Add a table by a metadata file inside the warehouse. Raises AlreadyExists, NoSuchNamespace, BadUpdate."""
        _check_name(name)
        file = self._files.read(metadata_location)
        with self._database.write() as session:
            require_free(session, namespace, name)
            pointer = Pointer(kind="table", location=file.location)
            begin_pointers(session, [((namespace, name), pointer)], self._next_version(session).number)
        return _loaded((namespace, name), file)

    def drop_table(self, namespace: str, name: str, *, kind: Kind = "table") -> int:
        """The version from which on the table (or view) is gone. Its files stay: earlier versions need them. Raises
        NoSuchTable (NoSuchView).
        """
        with self._database.write() as session:
            pointer = pointer_at(session, (namespace, name))
            if pointer is None or pointer.kind != kind:
                raise missing(kind, namespace, name)
            version = self._next_version(session).number
            end_pointers(session, [(namespace, name)], version)
        return version

    def rename(self, source: Identifier, target: Identifier, *, kind: Kind = "table") -> int:
        """The version from which on the table (or view) has its new name. Its files stay where they are. Raises
        NoSuchTable (NoSuchView), NoSuchNamespace, AlreadyExists.
        """
        _check_name(target[1])
        with self._database.write() as session:
            pointer = pointer_at(session, source)
            if pointer is None or pointer.kind != kind:
                raise missing(kind, *source)
            require_free(session, *target)
            version = self._next_version(session).number
            end_pointers(session, [source], version)
            begin_pointers(session, [(target, pointer)], version)
        return version

    # How a commit is made

    def _draft(self, change: TableChange, pointer: Pointer | None) -> MetadataFile:
        """The change applied to the metadata at ``pointer``, as a file still unwritten."""
        called = f"{shown(change.namespace)}.{change.name}"
        if pointer is None:
            if not change.creates:
                raise missing(change.kind, change.namespace, change.name)
            _check_name(change.name)
        elif pointer.kind != change.kind:
            raise AlreadyExists(f"{called} is a {pointer.kind}, not a {change.kind}. Nothing was changed.")
        base = None if pointer is None else self._files.read(pointer.location, kind=change.kind).document
        previous = None if pointer is None else pointer.location
        home = self._files.table_location(_levels(change.namespace), change.name)
        now_ms = self._now() // 1000
        if change.kind == "view":
            check_view_requirements(base, change.requirements, view=called)
            document = apply_view_updates(base, change.updates, now_ms=now_ms, location=home, view=called)
        else:
            check_requirements(base, change.requirements, table=called)
            document = apply_updates(base, change.updates, now_ms=now_ms, location=home, base_location=previous, table=called)
        return self._files.compose(document, previous)

    def _swap(self, changes: Sequence[TableChange], attempt: _Attempt | None) -> Committed:
        """Point the tables at the attempt's files. Raises _Overtaken if its bases are not the tables' state any more.

        Without an attempt one is made inside the transaction, where nobody can overtake it.
        """
        committing = False
        try:
            with self._database.write() as session:
                found = pointers_of(session, [change.identifier for change in changes])
                if attempt is None:
                    attempt = _Attempt(
                        self._files, [self._draft(change, found.get(change.identifier)) for change in changes], found
                    )
                    attempt.write()
                elif found != attempt.bases:
                    raise _Overtaken
                version = self._next_version(session).number
                for namespace in {change.namespace for change in changes if change.identifier not in found}:
                    if namespace_properties(session, namespace) is None:
                        raise no_namespace(namespace)
                end_pointers(session, list(found), version)
                begin_pointers(session, attempt.pointers(changes), version)
                failpoint.hit("before-catalog-commit")
                committing = True
        except CommitOutcomeUnknown:
            assert attempt is not None
            made = self._version_that_made(attempt.files)
            if made is None:
                raise
            version = made
        except BaseException as error:
            # A signal's exception may strike between the commit and our knowing of it: then the files may be in use.
            if attempt is not None and (not committing or isinstance(error, LakeUnavailable)):
                attempt.discard()
            raise
        failpoint.hit("catalog-committed")
        tables = {
            change.identifier: _loaded(change.identifier, file) for change, file in zip(changes, attempt.files, strict=True)
        }
        return Committed(version=version, tables=tables)

    def _version_that_made(self, files: Sequence[MetadataFile]) -> int | None:
        """The version that points to these files, after an unclear commit; None if there is none or the database cannot say."""
        with suppress(LakeUnavailable), self._database.read() as session:
            for file in files:
                for row in session.rows("select from_version from pointers where metadata_location = ?", (file.location,)):
                    return int(row[0])
        return None


class _Overtaken(Exception):
    """Somebody else committed to one of the tables between the draft and the transaction."""


class _Attempt:
    """The files of a commit, made for tables whose pointers are ``bases``."""

    def __init__(self, store: MetadataFiles, files: Sequence[MetadataFile], bases: Mapping[Identifier, Pointer]) -> None:
        self._store, self.files, self.bases = store, files, bases

    def pointers(self, changes: Sequence[TableChange]) -> list[tuple[Identifier, Pointer]]:
        return [
            (change.identifier, Pointer(kind=change.kind, location=file.location))
            for change, file in zip(changes, self.files, strict=True)
        ]

    def write(self) -> None:
        self._store.write(self.files)

    def discard(self) -> None:
        self._store.discard(self.files)


def _loaded(identifier: Identifier, file: MetadataFile) -> LoadedTable:
    return LoadedTable(
        namespace=identifier[0], name=identifier[1], metadata_location=file.location, metadata=file.document, content=file.content
    )


def _levels(namespace: str) -> list[str]:
    return namespace.split(SEPARATOR)


def _checked_levels(namespace: str) -> list[str]:
    levels = _levels(namespace)
    for level in levels:
        _check_name(level)
    return levels


def _check_name(name: str) -> None:
    if not name or len(name) > 255 or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        raise BadUpdate(f"{name!r} cannot be a name: it must have 1 to 255 letters, none of them a control character.")
