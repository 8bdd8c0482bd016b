"""Reading and writing files: YAML is plain data, and what is written is written whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from loraplan.errors import BadInputError


class _DuplicateKeyError(ValueError):
    """A mapping gives one key twice."""


class _Loader(yaml.SafeLoader):
    """Plain types only, and every key once: PyYAML lets the last one win without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Keys are compared as written: once a ``<<`` is merged, a key of its own may override one it brings.
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                written, line = (key.tag, key.value), key.start_mark.line + 1
                if written in lines:
                    raise _DuplicateKeyError(
                        f"key {key.value!r:.80} is given twice, on line {lines[written]} and on line {line}"
                    )
                lines[written] = line
        return node


def parse_yaml(text: str, what: str) -> Any:
    """The data that ``text`` holds as YAML, of plain types only; ``what`` names it in messages.

    Raises:
        BadInputError: it is not YAML, gives a key twice, names an impossible date or nests too deeply.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except _DuplicateKeyError as error:
        raise BadInputError(f"{what}: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadInputError(f"{what}: not valid YAML: {' '.join(str(error).split())}") from None


def read_yaml(path: Path, what: str) -> Any:
    """The data in a YAML file, of plain types only; ``what`` names it in messages.

    Raises:
        BadInputError: it cannot be read, is not text or not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInputError(f"{what}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise BadInputError(f"{what}: not valid YAML: {error}") from None
    return parse_yaml(text, what)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically, as ``write_bytes`` does.

    Raises:
        BadInputError: the folder does not exist or cannot be written.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically: a reader sees the old file or the new one, never a part.

    That holds if the machine loses power, too: the content is on the disk before the name is. A process that is killed
    leaves at most a temporary file, ``.NAME.xxxxxxxx``.

    Raises:
        BadInputError: the folder does not exist or cannot be written.
    """
    require_writable(path)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise BadInputError(f"cannot write {path}: {error.strerror}") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; a result is as readable as any other new file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # noqa: PTH101
        Path(temporary).replace(path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise BadInputError(f"cannot write {path}: {error.strerror}") from None
        raise


def require_writable(path: Path) -> None:
    """Tell before the work, not after it, that its result could not be written to ``path``.

    Raises:
        BadInputError: the folder does not exist or cannot be written, or ``path`` is something else than a file.
    """
    folder = path.parent
    if not folder.is_dir():
        raise BadInputError(f"cannot write {path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise BadInputError(f"cannot write {path}: {folder} is read-only")
    if path.exists() and not path.is_file():  # a folder; or a device, which a rename would destroy
        raise BadInputError(f"cannot write {path}: it is not a file")


def sha256(path: Path) -> str:
    """Hex digest of a file's content.

    Raises:
        BadInputError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadInputError(f"{path}: {error.strerror}") from None


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Keep other processes from writing to a folder in the block; the lock of a process that is killed is gone.

    Args:
        path: a file in the folder that all of them lock.
        what: how messages name the folder.

    Raises:
        BadInputError: another process has it, or the file cannot be written.
    """
    try:
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
    except BlockingIOError:
        raise BadInputError(f"{what}: another process writes to it; wait for it, or stop it") from None
    except PermissionError as error:
        raise BadInputError(f"{what}: {error.strerror}") from None


def make_folder(folder: Path, what: str) -> set[str]:
    """Make a folder, if it is not there, in one that is; the names in it.

    Args:
        folder: the folder.
        what: how messages name it.

    Raises:
        BadInputError: something else is there, the folder above is not, or it cannot be made or read.
    """
    try:
        folder.mkdir(exist_ok=True)
        return {path.name for path in folder.iterdir()}
    except FileExistsError:
        raise BadInputError(f"{what} {folder}: it is not a folder") from None
    except FileNotFoundError:
        raise BadInputError(f"{what} {folder}: there is no folder {folder.parent}") from None
    except OSError as error:
        raise BadInputError(f"{what} {folder}: {error.strerror or error}") from None
