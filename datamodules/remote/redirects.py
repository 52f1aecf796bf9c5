"""Where a web server may lead: not to an open line, and never further inward than it is itself.

A server of the internet has no business on this machine or in its network. A request there acts
with this machine's rights (metadata of a cloud, a notebook, a router's page), and has acted before
any hash is compared. Names are asked for their addresses. A name that changes its address between
the question and the request gains nothing: but for `localhost` it needs https, so a certificate.
"""

import asyncio
import ipaddress
from enum import IntEnum
from types import SimpleNamespace
from typing import TYPE_CHECKING

from datamodules.remote.address import WEB, is_loopback

if TYPE_CHECKING:
    import aiohttp


class Reach(IntEnum):
    """From where an address can be reached; a larger one is further inward."""

    internet = 0
    network = 1
    link = 2
    machine = 3


class RedirectError(Exception):
    """A server leads where it should not; the text goes on from "redirected"."""


def reach_of(address: str) -> Reach:
    """Return the reach of a numeric address."""
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    if parsed.is_loopback or parsed.is_unspecified:  # Linux takes 0.0.0.0 for itself
        return Reach.machine
    if parsed.is_link_local:
        return Reach.link
    return Reach.internet if parsed.is_global else Reach.network


async def reach_of_host(host: str) -> Reach:
    """Return the innermost reach of a host's addresses; `internet` if only a proxy knows it."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return Reach.internet
    return max(reach_of(str(place[0])) for *_, place in found)


async def refuse_redirect(
    redirect: "aiohttp.TraceRequestRedirectParams", *, insecure_http: bool
) -> None:
    """Refuse a redirect to nowhere, to an open line, or inward.

    Raises:
        RedirectError: with the host and no more of the address, which may hold secrets.
    """
    from yarl import URL  # aiohttp's: the address that is judged is the one that is asked

    location = redirect.response.headers.get("Location")
    if not location:
        raise RedirectError("without an address to go to (Location)")
    try:
        target = redirect.url.join(URL(location))
    except ValueError:
        target = URL()
    host, source = target.raw_host, redirect.url.raw_host
    if target.scheme not in WEB or not host or not source:
        raise RedirectError("to what is no web address")
    if target.scheme == "http" and not insecure_http and not is_loopback(host):
        raise RedirectError(f"to http:// on {host}, not encrypted")
    reach = await reach_of_host(host)
    outermost = await reach_of_host(source)
    if not is_loopback(source):  # the owner of a name may let it mean this machine for a moment
        outermost = min(outermost, Reach.link)
    if reach > outermost:
        raise RedirectError(
            f"from {source} inward to {host}, an address of this {reach.name}; give an address "
            "there yourself if you mean it"
        )


def redirect_trace(*, insecure_http: bool) -> "aiohttp.TraceConfig":
    """Return what makes a session of aiohttp refuse redirects."""
    import aiohttp

    async def refuse(
        session: aiohttp.ClientSession,
        context: SimpleNamespace,
        redirect: aiohttp.TraceRequestRedirectParams,
    ) -> None:
        del session, context
        await refuse_redirect(redirect, insecure_http=insecure_http)

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(refuse)
    return trace
