"""The folder that holds everything of the visitors, and its cleaning: nothing of theirs outlives the server for long."""

from __future__ import annotations

import atexit
import contextlib
import shutil
import tempfile
import threading
import time
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: what killed servers leave stays there
    fcntl = None

PREFIX = "liteavse_app_"
KEPT_SEC = 3600.0  # Files of visitors are removed at this age.
BROKEN_SEC = 60.0  # An upload that is under way is written to more often than this.
SWEEP_SEC = 30.0


def visitors_folder() -> Path:
    """A new folder that goes when the program ends, and in which Python's temporary files go until then.

    It has cache/ for uploads and made/ for results. Folders of servers that were killed are removed first: each server
    holds a lock on its own, which the system releases however the server ends.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        remove_if_abandoned(folder)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    lock = open(folder / "lock", "w")  # noqa: SIM115 - for as long as the program runs
    if fcntl is not None:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    # multiprocessing removes its own at the end; it lies beside, for the names of its sockets may not be long.
    print(get_temp_dir(), file=lock, flush=True)
    for name in ("cache", "made"):
        (folder / name).mkdir()
    tempfile.tempdir = str(folder)
    atexit.register(_remove, folder, lock)
    threading.Thread(target=_keep_swept, args=(folder,), daemon=True).start()
    return folder


def _remove(folder: Path, lock: IO) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    lock.close()


def remove_if_abandoned(folder: Path) -> None:
    """Remove the folder of a server that runs no more. A folder without a lock file is one that was never finished."""
    if fcntl is None or folder.is_symlink():
        return
    with contextlib.suppress(OSError):
        if time.time() - folder.stat().st_mtime < 1.0 and not (folder / "lock").exists():
            return  # A server that begins at the same moment has not written its lock yet.
        with open(folder / "lock", "a+") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.seek(0)
            beside = Path(lock.readline().strip() or folder)
            if beside.parent == folder.parent and beside.name.startswith("pymp-"):
                shutil.rmtree(beside, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)


def _keep_swept(folder: Path) -> None:
    while True:
        time.sleep(SWEEP_SEC)
        sweep(folder)


def sweep(folder: Path) -> None:
    """Remove what is old: halves of uploads, which lie directly in cache/, soon, and all other files after KEPT_SEC."""
    now = time.time()
    for part in ("cache", "made"):
        for path in sorted((folder / part).rglob("*"), reverse=True):  # what is in a folder comes before the folder
            with contextlib.suppress(OSError):
                if path.is_dir():
                    if now - path.stat().st_mtime > KEPT_SEC:
                        path.rmdir()  # fails where something is in it
                elif now - path.stat().st_mtime > (BROKEN_SEC if path.parent == folder / "cache" else KEPT_SEC):
                    path.unlink()


def bytes_in(folder: Path) -> int:
    """How much is in a folder and all below it."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # removed just now
            total += path.lstat().st_size if not path.is_dir() else 0
    return total

