"""Where a shard folder lies: a plain path, or an address that fsspec can read.

An address may carry secrets (`user:password@`, a token in the query). It is kept whole for requests
only; everything people read shows `Address.shown`, which has neither.
"""

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

import fsspec

from emu_edit.errors import InputError, closest

WEB = {"http", "https"}


@dataclass(frozen=True)
class Address:
    """A folder that is not on this machine's file system.

    Args:
        url: with whatever secrets it has.
    """

    url: str = field(repr=False)

    @property
    def protocol(self) -> str:
        """The scheme in lower case, e.g. "https" or "s3"."""
        return urlsplit(self.url).scheme

    def file(self, name: str) -> str:
        """Return the address of a file of the folder; a query stays behind the path."""
        parts = urlsplit(self.url)
        # only the web has characters of a name that mean something else
        plain = quote(name) if parts.scheme in WEB else name
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{plain}"))

    def shown(self, name: str = "") -> str:
        """Return the address of the folder or a file of it, without user, password and query."""
        parts = urlsplit(self.url)
        host = parts.netloc.rpartition("@")[2]
        path = unquote(parts.path)
        file = f"{path.rstrip('/')}/{name}" if name else path
        return f"{parts.scheme}://{host}{file}{'?...' if parts.query else ''}"


def parse_place(place: str | Path, *, insecure_http: bool = False) -> Path | Address:
    """Tell a path from an address, and refuse addresses that should not be read.

    Args:
        place: a path, `https://host/folder`, `s3://bucket/folder`, `hf://datasets/owner/name`, or
            another protocol of fsspec; `file://` is a path.
        insecure_http: whether `http://` may lead to another machine.

    Raises:
        InputError: for `pipe:` and chained addresses, unknown protocols, and `http://` to another
            machine.
    """
    text = str(place)
    if text.startswith("pipe:"):
        raise InputError(
            "data from a command (pipe:) are not read, a config must not run programs; download "
            "them first, or give an address such as https:// or s3://"
        )
    if isinstance(place, Path) or "://" not in text:
        return Path(place)
    if "::" in re.sub(r"\[[^\]]*\]", "", text):  # those of IPv6 stand in brackets
        raise InputError(
            f"{_scheme(text)}: chained addresses (with ::) are not read; give the plain address of "
            "a folder that holds manifest.json"
        )
    parts = _split(text)
    if parts.scheme in {"file", "local"}:
        return Path(unquote(parts.path))
    known = fsspec.available_protocols()
    if parts.scheme not in known:
        raise InputError(
            f"{parts.scheme}:// is no protocol that can be read; there are https, s3, hf and "
            f"others of fsspec.{closest(parts.scheme, known)}"
        )
    address = Address(text)
    if parts.scheme == "http" and not insecure_http and not is_loopback(parts.hostname or ""):
        raise InputError(
            f"{address.shown()} is not encrypted, whoever is between could change the data; use "
            "https://, or set data.cache.insecure_http: true"
        )
    return address


def is_loopback(host: str) -> bool:
    """Tell whether a host name can only be this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _scheme(text: str) -> str:
    return f"{text.partition('://')[0].rpartition('::')[2]}://"


def _split(text: str) -> SplitResult:
    """Split an address; one that is not well formed may have its password anywhere: not shown."""
    is_plain = text.isprintable() and " " not in text and "#" not in text
    try:
        parts = urlsplit(text)
        if is_plain and (parts.scheme not in WEB or (parts.hostname and parts.port != 0)):
            return parts
    except ValueError:  # of the port; it may be the half of a password
        pass
    raise InputError(
        f"an address that begins with {_scheme(text)} cannot be used: it has no host, a port that "
        "is no number, spaces, or a '#'; write %2F for a '/' in a password"
    )
