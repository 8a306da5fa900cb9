"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import socket
import time
from pathlib import Path

_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:4]
_OURS = re.compile(r"\.c2d-([0-9a-f]{4})-(\d+)-[0-9a-f]{8}\.(new|raw)")
_WEEK = 7 * 24 * 3600


def temporary(folder: Path, kind: str = "new") -> Path:
    """A name in `folder` that nothing has yet, hidden and short whatever the file's own will be.

    It holds this machine and process, so that `remove_leftovers` knows whose it is.
    """
    return folder / f".c2d-{_HOST}-{os.getpid()}-{secrets.token_hex(4)}.{kind}"


def remove_leftovers(folder: Path) -> int:
    """Remove the temporary files of processes that are no more; returns how many.

    Only a process that was killed leaves any. Those of other machines count as left after a week.
    """
    removed = 0
    with contextlib.suppress(OSError):  # a folder that cannot be listed
        for path in folder.iterdir():
            found = _OURS.fullmatch(path.name)
            if found and _is_left(path, found[1], int(found[2])):
                with contextlib.suppress(OSError):
                    path.unlink()
                    removed += 1
    return removed


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Write a file that appears whole or not at all.

    Raises OSError with the file's name, as for a full disk.
    """
    unfinished = temporary(path.parent)
    try:
        with open(unfinished, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        unfinished.unlink(missing_ok=True)


def _is_left(path: Path, host: str, process: int) -> bool:
    if host == _HOST:
        return not _alive(process)
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime > _WEEK
    return False


def _alive(process: int) -> bool:
    if os.name != "posix" or process == os.getpid():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
