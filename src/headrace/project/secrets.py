"""Values that are used but never shown. They are read when needed: `headrace query` works without the source's password."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from headrace.errors import ProjectError


class Secret:
    """A value that no repr, log line or error shows. ``origin`` says where it comes from, in words that may be shown."""

    __slots__ = ("_read", "origin")

    def __init__(self, read: Callable[[], str], *, origin: str) -> None:
        self._read = read
        self.origin = origin

    def reveal(self) -> str:
        """The value. Raises ProjectError when the variable or file it comes from is missing."""
        return self._read()

    def __repr__(self) -> str:
        return f"Secret({self.origin})"

    def __reduce__(self) -> str:
        raise TypeError("a Secret is not serialised")


def literal(value: str, *, origin: str) -> Secret:
    return Secret(lambda: value, origin=origin)


def from_environment(name: str, environ: Mapping[str, str]) -> Secret:
    def read() -> str:
        if not environ.get(name):
            raise missing_variable(name)
        return environ[name]

    return Secret(read, origin=f"environment variable {name}")


def from_file(path: Path) -> Secret:
    """The file's text without the newline at its end."""

    def read() -> str:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise ProjectError(
                f"the secret in file {path} cannot be read: {reason}",
                remedy="Write the secret into that file (readable by this user only), or refer to another one in headrace.yaml.",
            ) from None
        value = text.removesuffix("\n").removesuffix("\r")
        if not value:
            raise ProjectError(f"the secret in file {path} is empty", remedy="Write the secret into that file.")
        return value

    return Secret(read, origin=f"file {path}")


def missing_variable(name: str, *, where: str = "") -> ProjectError:
    return ProjectError(
        f"{where or 'the project file'} refers to the environment variable {name}, which is not set",
        remedy=f"export {name}=…, or give a default in the file: ${{{name}:-default}}",
    )


def write_secret(path: Path, value: str) -> None:
    """Write a file that only this user can read; it never exists with other rights, and replaces an older one whole."""
    private_folder(path.parent)
    writing = path.with_name(f".{path.name}.{os.getpid()}")
    writing.unlink(missing_ok=True)
    descriptor = os.open(writing, os.O_WRONLY | os.O_CREAT | os.O_EXCL, stat.S_IRUSR | stat.S_IWUSR)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(value + "\n")
        file.flush()
        os.fsync(file.fileno())
    writing.replace(path)


def kept_secret(path: Path) -> Secret:
    """A random secret that is made at the first call and kept in this file. Two processes at once agree on one."""
    if not path.exists():
        made = path.with_name(f"{path.name}.new-{os.getpid()}")
        write_secret(made, secrets.token_urlsafe(32))
        try:
            os.link(made, path)  # fails if another process was first, and then its secret is the one
        except FileExistsError:
            pass
        finally:
            made.unlink()
    return from_file(path)


def private_folder(path: Path) -> None:
    """Make a folder that version control ignores and, since it holds secrets, other users cannot enter. Raises ProjectError."""
    if path.is_dir():
        return
    try:
        path.mkdir(parents=True, exist_ok=True, mode=stat.S_IRWXU)
        (path / ".gitignore").write_text("*\n")
    except OSError as error:
        raise ProjectError(
            f"the folder {path}, for what Headrace keeps on this machine, cannot be made: {error.strerror}",
            remedy="Make room for it: nothing else may have that name, and this user must be able to write beside headrace.yaml.",
        ) from error
