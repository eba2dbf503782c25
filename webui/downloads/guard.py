"""Which machines a download may talk to. The connection goes to the very address that was checked (no DNS rebinding).

Whoever can add a download could else make us call what only this machine can reach: the router, a cloud's metadata
service, a database on localhost. So each host is resolved here, all its addresses must be public, and the request is
sent to one of them by number; TLS still asks for the certificate of the name. A redirect is a new request.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable

import httpx

from webui.downloads.types import AddressRefused

Resolve = Callable[[str, int], Awaitable[list[str]]]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""RFC 6052: the last four bytes are an IPv4 address. A network with DNS64 gives such addresses for ordinary hosts."""

COMPATIBLE = ipaddress.ip_network("::/96")
SPECIAL = tuple(
    map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "64:ff9b:1::/48", "100::/64", "5f00::/16"))
)
"""IANA's registries list these as not for the open internet; Python 3.11's `is_global` does not know them all."""

PORTS = {"http": 80, "https": 443}


def is_public(address: str) -> bool:
    """An address of the open internet. IPv4 inside IPv6 counts as what it carries."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return _is_public(found)


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        if address.teredo or address.is_site_local or address.scope_id:
            return False
        if inner := address.ipv4_mapped or address.sixtofour or _embedded(address):
            return _is_public(inner)
    if any(address in network for network in SPECIAL):
        return False
    return address.is_global and not (
        address.is_multicast
        or address.is_reserved
        or address.is_unspecified
        or address.is_loopback
        or address.is_link_local
    )


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address in NAT64 or address in COMPATIBLE:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return None


async def ask_dns(host: str, port: int) -> list[str]:
    """All addresses of a host, the system's favourite first. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class GuardedTransport(httpx.AsyncBaseTransport):
    """Sends a request only to a checked address of its host."""

    def __init__(self, allowed_hosts: frozenset[str], connect_seconds: float, resolve: Resolve = ask_dns) -> None:
        self._allowed = frozenset(host.lower() for host in allowed_hosts)
        self._seconds, self._resolve = connect_seconds, resolve
        # A kept connection is found by its address, so one that was opened for a name could serve another: keep none
        # (The environment is asked for further certificates alone, as companies have them; never for a proxy.)
        self._inner = httpx.AsyncHTTPTransport(trust_env=True, limits=httpx.Limits(max_keepalive_connections=0))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        failure: httpx.TransportError = httpx.ConnectError(f"{request.url.host} has no address")
        for address in await self.addresses(request.url):
            try:
                return await self._inner.handle_async_request(_to(request, address))
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:  # as IPv6 where only the name server knows it
                failure = error
        raise failure

    async def addresses(self, url: httpx.URL) -> list[str]:
        """Of this host, checked. Raises AddressRefused, or httpx.ConnectError if the name is not known."""
        host, port = url.raw_host.decode("ascii").lower().rstrip("."), url.port or PORTS.get(url.scheme, 0)
        if not host or url.userinfo:
            raise AddressRefused("This address names no host, or carries a password. Give a plain https address.")
        trusted = not self._allowed.isdisjoint((host, f"{host}:{port}"))
        if url.scheme != "https" and not (trusted and url.scheme == "http"):
            raise AddressRefused(f"{url.scheme}://{host} is not fetched: addresses must begin with https://.")
        found = await self._ask(host, port)
        if not trusted and not all(map(is_public, found)):
            raise AddressRefused(
                f"{host} lies in a private network, which downloads must not reach. If it is a machine of yours, "
                f"add {host}:{port} to the setting download_hosts."
            )
        return found

    async def _ask(self, host: str, port: int) -> list[str]:
        try:
            return await asyncio.wait_for(self._resolve(host.strip("[]"), port), self._seconds)
        except TimeoutError as error:
            raise httpx.ConnectTimeout(f"the name server does not answer for {host}") from error
        except (OSError, UnicodeError) as error:
            raise httpx.ConnectError(f"the name server knows no {host}") from error

    async def aclose(self) -> None:
        await self._inner.aclose()


def _to(request: httpx.Request, address: str) -> httpx.Request:
    """The same request to a numeric address: the Host header and the certificate's name stay."""
    return httpx.Request(
        request.method,
        request.url.copy_with(host=address),
        headers=request.headers,
        stream=request.stream,
        extensions={**request.extensions, "sni_hostname": request.url.raw_host.decode("ascii")},
    )
