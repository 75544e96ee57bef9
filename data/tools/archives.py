"""Files over HTTP and archives of them: broken-off transfers go on, checksums are kept, nothing is unpacked elsewhere.

The standard library does it: one request at a time, a Range header and an MD5 are all that is needed.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import ssl
import time
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from utils.console import one_line

TIMEOUT_SEC = 60
ATTEMPTS = 5  # in a row that bring no byte before a file is given up
WAIT_SEC = 1.0  # before the second attempt; doubled for each one after it
BLOCK_BYTES = 1 << 20


class DownloadError(OSError):
    """A file that could not be fetched; the message is one line that names it and says what to do."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a record, and what it must be when it is here."""

    name: str
    url: str
    size: int
    md5: str


def read_record(base_url: str, record: str) -> dict[str, RemoteFile]:
    """The files of a public Zenodo record by name. DownloadError when the record cannot be read."""
    url = f"{base_url.rstrip('/')}/api/records/{record}"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SEC) as answer:
            listed = json.load(answer)["files"]
        files = {}
        for item in listed:
            kind, _, checksum = item["checksum"].partition(":")
            if kind != "md5" or not checksum:
                raise ValueError(f"checksum {item['checksum']!r}")
            address = f"{base_url.rstrip('/')}/records/{record}/files/{item['key']}?download=1"
            files[item["key"]] = RemoteFile(item["key"], address, int(item["size"]), checksum)
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(f"{url}: {_why(error)}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DownloadError(f"{url} is no record that this script understands ({error!r})") from None
    return files


def _why(error: Exception) -> str:
    """A failed request in plain words."""
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return f"no connection ({' '.join(str(error.reason).split())}); are you offline?"
    return f"the connection broke ({one_line(error)})"


def fetch(file: RemoteFile, target: Path) -> None:
    """Bring a file to `target`, going on with what `target`.part holds of it, and check it.

    DownloadError when the server has it not, does not answer ATTEMPTS times in a row, or sends something else; then the
    part that is here stays, unless it is wrong.
    """
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    failures, here = 0, part.stat().st_size if part.exists() else 0
    if here > file.size:
        part.unlink()
        here = 0
    with tqdm(total=file.size, initial=here, desc=file.name, unit="B", unit_scale=True, disable=None) as bar:
        while here < file.size:
            try:
                _fetch_some(file, part, here, bar)
                problem = "the connection broke"
            except urllib.error.HTTPError as error:
                if error.code < 500 and error.code not in (408, 416, 429):
                    raise DownloadError(f"{file.url}: {_why(error)}") from None
                if error.code == 416:  # what is here is not the beginning of what is there
                    part.unlink(missing_ok=True)
                problem = _why(error)
            except (urllib.error.URLError, http.client.HTTPException, ssl.SSLError, ConnectionError, TimeoutError) as error:
                problem = _why(error)
            before, here = here, part.stat().st_size if part.exists() else 0
            failures = 0 if here > before else failures + 1
            if failures >= ATTEMPTS:
                raise DownloadError(f"{file.url}: {problem}; run the same command again to go on from {here} bytes")
            if here < file.size:
                time.sleep(WAIT_SEC * 2 ** max(0, failures - 1))
    found = md5_of(part)
    if found != file.md5 or here != file.size:
        part.unlink()
        raise DownloadError(f"{file.url}: what came is not what the record promises (md5 {found}, not {file.md5}); try again")
    part.replace(target)


def _fetch_some(file: RemoteFile, part: Path, here: int, bar: tqdm) -> None:
    """Add to `part`, which holds `here` bytes, what one request brings; a server that cannot go on begins anew."""
    request = urllib.request.Request(file.url, headers={"Range": f"bytes={here}-"} if here else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT_SEC) as answer:
        goes_on = here > 0 and answer.status == 206
        if here and not goes_on:
            bar.update(-here)
        with open(part, "ab" if goes_on else "wb") as out:
            while block := answer.read(BLOCK_BYTES):
                out.write(block)
                bar.update(len(block))


def md5_of(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def unpack(archive: Path, folder: Path) -> list[str]:
    """Unpack a zip archive into `folder` and give the paths of its files below it.

    ValueError, before anything is written, for what is no zip archive or has members that would land elsewhere.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            members = [member for member in packed.infolist() if not member.is_dir()]
            for member in members:
                path = PurePosixPath(member.filename.replace("\\", "/"))
                if path.is_absolute() or not path.parts or ".." in path.parts or ":" in path.parts[0]:
                    raise ValueError(f"{archive} holds {member.filename!r}, which lies outside the folder; nothing unpacked")
            for member in tqdm(members, desc=f"unpack {archive.name}", unit="file", disable=None, leave=False):
                packed.extract(member, folder)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:  # the last: a compression that zipfile does not know
        raise ValueError(f"{archive} is no zip archive that can be unpacked: {error}") from None
    return [member.filename for member in members]
