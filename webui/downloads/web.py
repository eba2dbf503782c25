"""GET requests for downloads: redirects by hand, tokens for their own hosts alone, failures as sentences."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, TypeVar

import httpx

from webui.downloads.guard import GuardedTransport, Resolve, ask_dns
from webui.downloads.tokens import Tokens
from webui.downloads.types import AddressRefused, DownloadFailed, Rules, Service, TryLater

log = logging.getLogger(__name__)

T = TypeVar("T")

JSON_BYTES = 32 * 2**20
LONGEST_WAIT_SECONDS = 600.0
FINE = frozenset({200, 206, 416})
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524, 525, 526, 529})
"""Statuses after which the same request may succeed; those above 511 are Cloudflare's, before Civitai and others."""

CLOSED: dict[Service, str] = {
    "huggingface": "Hugging Face gives this to signed-in users only, or the name is misspelt. Check the name; accept "
    "the licence on the model's page if it asks for that; then add your Hugging Face token under Models and press "
    "Resume.",
    "civitai": "Civitai gives this to signed-in users only. Make an API key in your Civitai account, add it under "
    "Models and press Resume.",
}
MIRROR = (
    "{host} gives this to signed-in users only, or the name is misspelt. Tokens are not sent to mirrors: fetch the "
    "file in a browser and add it by its path, or set hf_mirror back to https://huggingface.co."
)
FAILURES: tuple[tuple[type[httpx.TransportError], str], ...] = (
    (httpx.ConnectTimeout, "{host} cannot be reached."),
    (httpx.ReadTimeout, "{host} has stopped sending."),
    (httpx.ConnectError, "{host} cannot be reached ({error})."),
    (httpx.TransportError, "The connection to {host} broke off."),
)


class Web:
    def __init__(self, rules: Rules, tokens: Tokens, resolve: Resolve = ask_dns) -> None:
        self._rules, self._tokens = rules, tokens
        self._client = httpx.AsyncClient(
            transport=GuardedTransport(rules.allowed_hosts, rules.connect_seconds, resolve),
            timeout=httpx.Timeout(rules.stall_seconds, connect=rules.connect_seconds),
            headers={"User-Agent": "Inkstone", "Accept": "*/*", "Accept-Encoding": "identity"},
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            follow_redirects=False,
            trust_env=False,  # neither a proxy, behind which nothing could be checked, nor passwords from ~/.netrc
        )

    async def aclose(self) -> None:
        await self._client.aclose()

    @asynccontextmanager
    async def open(self, url: str, headers: Mapping[str, str] | None = None) -> AsyncIterator[httpx.Response]:
        """The answer after all redirects, its status one of FINE, its body not read yet.

        Raises TryLater or DownloadFailed, also for what breaks while the caller reads.
        """
        host = "The server"
        try:
            target = httpx.URL(url)
            for _ in range(self._rules.redirects + 1):
                host = target.host
                request = self._client.build_request("GET", target, headers={**(headers or {}), **self._token(target)})
                response = await self._client.send(request, stream=True)
                try:
                    if not response.has_redirect_location:
                        self._check(response)
                        yield response
                        return
                    target = target.join(response.headers["location"])
                finally:
                    await response.aclose()
            raise DownloadFailed(
                f"{host} sends us round in circles. Open the address in a browser and copy a fresh one."
            )
        except httpx.UnsupportedProtocol as error:
            raise AddressRefused(f"{host} leads to an address that does not begin with https://.") from error
        except httpx.TransportError as error:
            text = next(text for kind, text in FAILURES if isinstance(error, kind))
            raise TryLater(text.format(host=host, error=error)) from error
        except (httpx.InvalidURL, httpx.StreamError, UnicodeError) as error:
            raise DownloadFailed(f"{host} leads to an address that cannot be read ({error}).") from error

    async def json(self, url: str) -> tuple[Any, str | None]:
        """A parsed body, and the address of the next page if there is one."""
        body = bytearray()
        async with self.open(url) as response:
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > JSON_BYTES:
                    raise DownloadFailed(f"{response.url.host} answers with more than {JSON_BYTES >> 20} MB of text.")
            following = response.links.get("next", {}).get("url")
            address = response.url
        try:
            return json.loads(body), str(address.join(following)) if following else None
        except (ValueError, RecursionError) as error:
            raise DownloadFailed(
                f"{address.host} does not answer as it should. Is the mirror address in the settings right?"
            ) from error

    def _token(self, url: httpx.URL) -> dict[str, str]:
        """Looked at again at each redirect, so that no other host is ever told."""
        service = self._service(url)
        token = self._tokens.get(service) if service else None
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _service(self, url: httpx.URL) -> Service | None:
        hosts = {url.host, f"{url.host}:{url.port}"}
        return next((name for name, known in self._rules.token_hosts.items() if not known.isdisjoint(hosts)), None)

    def _check(self, response: httpx.Response) -> None:
        status, host = response.status_code, response.url.host
        if status in FINE:
            return
        if status in (401, 403):
            raise DownloadFailed(self._closed(response.url, status))
        if status in (404, 410):
            raise DownloadFailed(f"{host} has nothing at this address ({status}). Check it for misspellings.")
        if status in PASSING:
            text = f"{host} asks us to wait." if status == 429 else f"{host} has trouble of its own ({status})."
            raise TryLater(text, retry_after(response.headers.get("retry-after", "")))
        raise DownloadFailed(f"{host} refuses with status {status}.")

    def _closed(self, url: httpx.URL, status: int) -> str:
        if service := self._service(url):
            sent = "The token that is set was refused. " if self._tokens.get(service) else ""
            return sent + CLOSED[service]
        if str(url).startswith(f"{self._rules.huggingface.rstrip('/')}/"):
            return MIRROR.format(host=url.host)
        return f"{url.host} forbids this ({status}). A link that was signed may be too old: copy a fresh one."


class Patience:
    """Counts failures in a row and waits longer after each."""

    def __init__(self, rules: Rules, say: Callable[[str], None]) -> None:
        self._rules, self._say, self._failures = rules, say, 0

    def reset(self) -> None:
        self._failures = 0

    async def wait(self, error: TryLater) -> None:
        """Raises DownloadFailed when it has been enough."""
        self._failures += 1
        if self._failures >= self._rules.tries:
            raise DownloadFailed(
                f"{error} That was try {self._failures}. What has come is kept: check your line, then press Resume."
            ) from error
        seconds = min(self._rules.backoff_seconds * 2 ** (self._failures - 1), 60.0)
        if error.wait_seconds is not None:
            seconds = min(error.wait_seconds, LONGEST_WAIT_SECONDS)
        self._say(f"{error} Next try in {seconds:.0f} s.")
        await asyncio.sleep(seconds)

    async def insist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await attempt()
            except TryLater as error:
                await self.wait(error)


def retry_after(value: str) -> float | None:
    """Seconds, from a number or a date (RFC 9110, 10.2.3)."""
    if value.strip().isdecimal():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (at.astimezone(UTC) - datetime.now(UTC)).total_seconds())
