"""Statements that may wait long at the source, for other sessions' transactions or locks.

A new slot waits for every transaction that has written and still runs, a lock for whoever holds it. The wait says whom it is for,
and ends when the run is asked to stop: the statement is cancelled, so that nothing of it is left at the source.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import adbc_driver_manager
import psycopg
from psycopg.rows import TupleRow

from headrace.errors import HeadraceError
from headrace.source.port import Stopped
from headrace.source.postgres.connect import Connector

T = TypeVar("T")

QUIET_SECONDS, AGAIN_SECONDS, LOOK_SECONDS = 2.0, 15.0, 0.05
CANCEL_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How to wait: until ``stopped`` is set, telling ``say`` whom for. ``connector`` opens the session that looks."""

    connector: Connector
    stopped: threading.Event
    say: Callable[[str], None]

    def wait(self, session: psycopg.Connection[TupleRow], statement: Callable[[], T], *, what: str) -> T:
        """What ``statement``, which runs on ``session``, returns or raises. ``what`` waits, in words: ``the copy's snapshot``.

        Raises Stopped, with the statement cancelled; whoever called does not use the session any more then.
        """
        answer: Future[T] = Future()

        def run() -> None:
            try:
                answer.set_result(statement())
            except BaseException as error:
                answer.set_exception(error)

        thread = threading.Thread(target=run, name="headrace-wait", daemon=True)
        thread.start()
        try:
            self._watch(thread, session.info.backend_pid, what)
        finally:
            if thread.is_alive():
                _end(session, thread)
        return answer.result()

    def _watch(self, thread: threading.Thread, pid: int, what: str) -> None:
        tell_at = time.monotonic() + QUIET_SECONDS
        told = ""
        while True:
            thread.join(LOOK_SECONDS)
            if not thread.is_alive():
                return
            if self.stopped.is_set():
                raise Stopped
            if time.monotonic() < tell_at:
                continue
            with suppress(HeadraceError, psycopg.Error):  # if nobody can be asked, the statement itself will fail
                text = f"{what} waits for {waited_for(self.connector, pid)}"
                if text != told:
                    self.say(text)
                    told = text
            tell_at = time.monotonic() + AGAIN_SECONDS


_WAITED_FOR = """
SELECT blocking.pid, activity.usename, round(extract(epoch FROM clock_timestamp() - activity.xact_start))::bigint
FROM (SELECT pid FROM unnest(pg_blocking_pids(%(pid)s)) pid
      UNION SELECT pid FROM pg_stat_activity WHERE %(writers)s AND backend_xid IS NOT NULL AND pid <> %(pid)s) blocking
LEFT JOIN pg_stat_activity activity USING (pid)
ORDER BY activity.xact_start NULLS FIRST, blocking.pid
LIMIT 6
"""
_FOR_WRITERS = """
SELECT EXISTS (SELECT FROM pg_locks WHERE pid = %(pid)s AND NOT granted AND locktype IN ('transactionid', 'virtualxid'))
"""


def waited_for(connector: Connector, pid: int) -> str:
    """The sessions that the session ``pid`` waits for, in words. Raises as a connection and a query do."""
    with connector.connect() as session:
        row = session.execute(_FOR_WRITERS, {"pid": pid}).fetchone()
        # A new slot waits for one writing transaction after the other: it will wait for all that there are now.
        found = session.execute(_WAITED_FOR, {"pid": pid, "writers": bool(row and row[0])}).fetchall()
        if any(one == 0 for one, _, _ in found):
            prepared = session.execute("SELECT gid FROM pg_prepared_xacts ORDER BY prepared LIMIT 3").fetchall()
    if not found:
        return "the source"
    texts = []
    for one, user, seconds in found:
        if one == 0:
            texts.append("the prepared transaction " + " or ".join(repr(gid) for (gid,) in prepared))
            continue
        details = [f"of {user}"] if user else []
        details += [f"open for {seconds} s"] if seconds is not None else []
        texts.append(f"pid {one}" + (f" ({', '.join(details)})" if details else ""))
    return "transactions at the source: " + ", ".join(texts)


def end_with_client(execute: Callable[[str], object]) -> None:
    """Have the server end the session, whatever it does, soon after its client is gone; else a killed run's locks and slots
    would stay for as long as its last statement takes. ``execute`` runs a statement in that session.
    """
    with suppress(psycopg.Error, adbc_driver_manager.Error):  # not every server's operating system can tell
        execute("SET client_connection_check_interval = '1s'")


def _end(session: psycopg.Connection[Any], thread: threading.Thread) -> None:
    """Make the statement that the thread waits for end: by asking the server, and where that does not help, by hanging up."""
    with suppress(psycopg.Error):
        session.cancel_safe(timeout=CANCEL_SECONDS)
    thread.join(CANCEL_SECONDS)
    if thread.is_alive():
        with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(session.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)
        thread.join()
