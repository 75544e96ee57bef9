"""Downloads published weights once, checks them and keeps them."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from utils.util import atomic_write


@dataclass(frozen=True)
class PublishedFile:
    """A file at a public address, by its digest. `instead` says what to do without it, for messages."""

    what: str
    url: str
    sha256: str  # hexadecimal, or its first digits
    instead: str
    timeout_sec: float = 20.0

    @property
    def path(self) -> Path:
        """Where it is kept: the folder $LITEAVSE_CACHE, or ~/.cache/liteavsemamba."""
        folder = os.environ.get("LITEAVSE_CACHE") or Path.home() / ".cache" / "liteavsemamba"
        return Path(folder) / self.url.rsplit("/", 1)[1]

    def get(self) -> Path:
        """`path`, after fetching the file where it is not there yet (never when $LITEAVSE_OFFLINE is set).

        ValueError, one line, says what is wrong and what to do.
        """
        path = self.path
        if not path.is_file():
            self._fetch(path)
        elif (digest := hashlib.sha256(path.read_bytes()).hexdigest()) and not digest.startswith(self.sha256):
            raise ValueError(
                f"{self.what}: {path} is not the file of {self.url} (sha256 {digest[:8]}, not {self.sha256[:8]}); "
                f"remove the file, or {self.instead}"
            )
        return path

    def _fetch(self, path: Path) -> None:
        remedy = f"put the file at {path}, or {self.instead}"
        if os.environ.get("LITEAVSE_OFFLINE"):
            raise ValueError(f"{self.what}: LITEAVSE_OFFLINE forbids fetching {self.url}; {remedy}")
        try:
            with urllib.request.urlopen(self.url, timeout=self.timeout_sec) as response:  # noqa: S310 - our own constants
                content = response.read()
        except (OSError, http.client.HTTPException) as error:  # URLError, HTTPError and timeouts are all OSErrors
            reason = str(getattr(error, "reason", None) or error or type(error).__name__).replace("\n", " ")
            raise ValueError(f"{self.what}: cannot be fetched from {self.url} ({reason}); {remedy}") from None
        digest = hashlib.sha256(content).hexdigest()
        if not digest.startswith(self.sha256):
            raise ValueError(
                f"{self.what}: damaged as fetched from {self.url} (sha256 {digest[:8]}, not {self.sha256[:8]}); {remedy}"
            )
        try:
            with atomic_write(path) as temporary:
                temporary.write_bytes(content)
        except OSError as error:
            raise ValueError(
                f"{self.what}: fetched from {self.url}, but it cannot be kept at {path} ({error.strerror}); "
                f"set LITEAVSE_CACHE to a folder you may write, or {self.instead}"
            ) from None
