"""Downloads against a real server that stalls, truncates, lies and redirects; over restarts and a kill -9."""

import asyncio
import hashlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from safetensors.numpy import save

from pipelines.errors import BadModel, PipelineError
from pipelines.types import Kind
from tests.server import ROOT, wait_for
from webui.db import Database
from webui.downloads import DownloadInfo, Downloads, DownloadState, Hooks, Rules, Tokens
from webui.downloads.folders import check_room, place, safe_name, safe_path
from webui.downloads.guard import GuardedTransport, is_public
from webui.downloads.hub import Entry, components, diffusers_files
from webui.downloads.part import Part
from webui.downloads.sources import CivitaiSource, HubSource, PathSource, UrlSource, parse, shown
from webui.downloads.types import AddressRefused, BadSource, DownloadFailed, DownloadNotFound, DownloadNotNow, NoRoom

MIB = 2**20


def model(key: str = "unet.weight", size: int = 1000, seed: int = 0) -> bytes:
    """A real safetensors file of about so many bytes."""
    return bytes(save({key: np.random.default_rng(seed).integers(0, 255, size, np.uint8)}))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def identify(path: Path) -> Kind:
    """What a file is, as the registry does it in small: from its suffix and its header."""
    if path.is_dir():
        return Kind.CHECKPOINT
    assert path.suffix == ".safetensors", path
    content = path.read_bytes()
    try:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        end = max(row["data_offsets"][1] for name, row in header.items() if name != "__metadata__")
    except (ValueError, TypeError) as error:
        raise BadModel("It has no header.") from error
    if len(content) != 8 + length + end:
        raise BadModel("It is cut off.")
    return Kind.LORA if "lora" in " ".join(header) else Kind.CHECKPOINT


@dataclass
class Trick:
    """How one request is answered. Without a trick, the server is a good one."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    send: int | None = None
    """Bytes of the body; all of them if None."""

    claim: int | None = None
    """Content-Length; the truth if None."""

    stall: bool = False
    """Afterwards the connection stays open and silent."""

    chunk: int = 1 << 16
    pause: float = 0.0


@dataclass
class Item:
    content: bytes = b""
    etag: str = '"1"'
    ranges: bool = True
    length: bool = True
    kind: str = "application/octet-stream"
    tricks: list[Trick] = field(default_factory=list)
    redirect: str = ""


@dataclass
class Asked:
    path: str
    headers: dict[str, str]


class Site:
    """A server in a thread of its own. Speaks plain HTTP/1.1 by hand, so that it can misbehave."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.items: dict[str, Item] = {}
        self.asked: list[Asked] = []
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls))
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.place = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.place}"
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._server.close()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def put(self, path: str, content: bytes | Any, **options: Any) -> str:
        """Something to fetch; anything but bytes becomes JSON. Its address."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.items[path] = Item(body, **options)
        return self.url + path

    def requests(self, path: str) -> list[dict[str, str]]:
        """Headers of the requests for this path, in order."""
        return [asked.headers for asked in self.asked if asked.path.partition("?")[0] == path]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            path = head[0].split(" ")[1]
            headers = {line.split(": ", 1)[0].lower(): line.split(": ", 1)[1] for line in head[1:] if line}
            self.asked.append(Asked(path, headers))
            await self._answer(self.items.get(path.partition("?")[0]), headers, writer)
        writer.close()

    async def _answer(self, item: Item | None, asked: dict[str, str], writer: asyncio.StreamWriter) -> None:
        if item is None:
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return await writer.drain()
        if item.redirect:
            writer.write(f"HTTP/1.1 302 Found\r\nLocation: {item.redirect}\r\nContent-Length: 0\r\n\r\n".encode())
            return await writer.drain()
        trick = item.tricks.pop(0) if item.tricks else Trick()
        start, status = self._start(item, asked), trick.status
        body, headers = item.content[start:], {"Content-Type": item.kind, "ETag": item.etag, **trick.headers}
        if start >= len(item.content) > 0:
            status, body, headers = 416, b"", {"Content-Range": f"bytes */{len(item.content)}"}
        elif start and status == 200:
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(item.content) - 1}/{len(item.content)}"
        if item.length:
            headers["Content-Length"] = str(len(body) if trick.claim is None else trick.claim)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value)
        writer.write(f"HTTP/1.1 {status} Whatever\r\n{lines}\r\n".encode())
        body = body if trick.send is None else body[: trick.send]
        for at in range(0, len(body), trick.chunk):
            writer.write(body[at : at + trick.chunk])
            await writer.drain()
            await asyncio.sleep(trick.pause)
        await writer.drain()
        if trick.stall:
            await asyncio.sleep(60)

    def _start(self, item: Item, asked: dict[str, str]) -> int:
        if not item.ranges or "range" not in asked or asked.get("if-range", item.etag) != item.etag:
            return 0
        return int(asked["range"].removeprefix("bytes=").rstrip("-"))


@pytest.fixture
def site() -> Generator[Site, None, None]:
    site = Site()
    yield site
    site.close()


@dataclass
class Home:
    """A data folder with downloads in it, opened as often as a test likes."""

    root: Path
    rules: Rules
    done: list[Path] = field(default_factory=list)
    changes: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def tokens(self) -> Tokens:
        return Tokens(self.root / "outputs" / "tokens.json")

    def make(self) -> tuple[Downloads, Database]:
        database = Database(self.root / "outputs" / "library.sqlite")
        hooks = Hooks(**{"identify": identify, "on_done": self.done.append, "on_change": self._change, **self.options})
        return Downloads(database, self.models, self.tokens, self.rules, hooks), database

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Downloads]:
        downloads, database = self.make()
        await downloads.start()
        try:
            yield downloads
        finally:
            await downloads.close()
            database.close()

    def fetch(self, source: str, **wishes: Any) -> DownloadInfo:
        """Add one and wait for its end."""

        async def run() -> DownloadInfo:
            async with self.open() as downloads:
                return await settled(downloads, (await downloads.add(source, **wishes)).id)

        return asyncio.run(run())

    def parts(self) -> list[Path]:
        return sorted(path for path in self.models.rglob("*") if path.name.endswith((".part", ".check")))

    def _change(self) -> None:
        self.changes += 1


@pytest.fixture
def home(tmp_path: Path, site: Site) -> Home:
    rules = Rules(
        allowed_hosts=frozenset({site.place}),
        huggingface=f"{site.url}/hub",
        civitai=f"{site.url}/civitai",
        tries=3,
        stall_seconds=30,
        backoff_seconds=0.01,
        margin_bytes=0,
        progress_seconds=0.0,
    )
    return Home(tmp_path, rules)


def with_rules(home: Home, **changes: Any) -> None:
    home.rules = Rules(**{**home.rules.__dict__, **changes})


async def settled(downloads: Downloads, number: int) -> DownloadInfo:
    """Wait until it neither runs nor waits."""
    active = (DownloadState.QUEUED, DownloadState.RUNNING)
    await until(lambda: downloads.get(number).state not in active)
    return downloads.get(number)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


# A download that goes well


def test_a_file_lands_in_the_folder_of_what_it_is(home: Home, site: Site) -> None:
    content = model("lora_up.weight", 3 * MIB)
    info = home.fetch(site.put("/files/My%20LoRA.safetensors", content))
    assert (info.state, info.kind, info.name) == (DownloadState.DONE, Kind.LORA, "My LoRA.safetensors"), info
    assert (info.received, info.total) == (len(content), len(content))
    path = home.models / "Lora" / "My LoRA.safetensors"
    assert path.read_bytes() == content
    assert home.done == [path], "the registry was told"
    assert home.parts() == []
    assert home.changes > 2, "pages were told on the way"


def test_the_kind_and_name_that_the_user_gives_hold(home: Home, site: Site) -> None:
    url = site.put("/a.safetensors", model())
    info = home.fetch(url, kind=Kind.VAE, name="../my:vae", sha256=sha256(model()).upper())
    assert info.state == DownloadState.DONE, info
    assert (home.models / "VAE" / "_my_vae.safetensors").read_bytes() == model()


def test_the_name_may_come_from_the_server(home: Home, site: Site) -> None:
    headers = {"Content-Disposition": 'attachment; filename="../../etc/dream.safetensors"'}
    tricks = [Trick(headers=headers), Trick(headers=headers)]
    home.fetch(site.put("/get", model(), tricks=tricks))
    assert (home.models / "Stable-diffusion" / "dream.safetensors").read_bytes() == model()


def test_a_slow_trickle_is_no_stall(home: Home, site: Site) -> None:
    content = model(size=100)
    info = home.fetch(site.put("/a.safetensors", content, tricks=[Trick(chunk=20, pause=0.05)]))
    assert info.state == DownloadState.DONE, info
    assert len(site.requests("/a.safetensors")) == 1


def test_progress_is_seen_while_it_runs(home: Home, site: Site) -> None:
    content = model(size=2 * MIB)
    url = site.put("/a.safetensors", content, tricks=[Trick(pause=0.02)])
    seen: list[DownloadInfo] = []

    async def run() -> None:
        async with home.open() as downloads:
            number = (await downloads.add(url)).id
            await until(lambda: downloads.get(number).bytes_per_second > 0)
            seen.extend(downloads.snapshot())
            await settled(downloads, number)

    asyncio.run(run())
    assert 0 < seen[0].received < len(content) == seen[0].total
    assert seen[0].seconds_left is not None


# The line is bad


def test_a_broken_connection_is_taken_up_where_it_broke(home: Home, site: Site) -> None:
    content = model(size=3 * MIB)
    url = site.put("/a.safetensors", content, tricks=[Trick(send=MIB + 5), Trick(send=MIB)])
    info = home.fetch(url)
    assert info.state == DownloadState.DONE, info
    ranges = [asked.get("range") for asked in site.requests("/a.safetensors")]
    assert ranges == [None, f"bytes={MIB + 5}-", f"bytes={2 * MIB + 5}-"]
    assert site.requests("/a.safetensors")[1]["if-range"] == '"1"'
    assert (home.models / "Stable-diffusion" / "a.safetensors").read_bytes() == content


def test_a_stalled_connection_is_opened_anew(home: Home, site: Site) -> None:
    with_rules(home, stall_seconds=0.3)
    url = site.put("/a.safetensors", model(), tricks=[Trick(send=100, stall=True)])
    assert home.fetch(url).state == DownloadState.DONE
    assert [asked.get("range") for asked in site.requests("/a.safetensors")] == [None, "bytes=100-"]


def test_a_server_that_stalls_for_ever_is_given_up_with_what_to_do(home: Home, site: Site) -> None:
    with_rules(home, stall_seconds=0.05)
    url = site.put("/a.safetensors", model(), tricks=[Trick(send=0, stall=True) for _ in range(9)])
    info = home.fetch(url)
    assert info.state == DownloadState.FAILED
    assert "has stopped sending" in info.message
    assert "press Resume" in info.message
    assert len(site.requests("/a.safetensors")) == 3


def test_failures_in_a_row_are_counted_but_not_those_with_progress_between(home: Home, site: Site) -> None:
    content = model(size=7 * MIB)
    url = site.put("/a.safetensors", content, tricks=[Trick(send=MIB + 1) for _ in range(5)])
    assert home.fetch(url).state == DownloadState.DONE


def test_trouble_of_the_server_passes(home: Home, site: Site) -> None:
    tricks = [Trick(status=500), Trick(status=429, headers={"Retry-After": "0"})]
    assert home.fetch(site.put("/a.safetensors", model(), tricks=tricks)).state == DownloadState.DONE


def test_a_server_asks_to_wait_and_the_user_is_told(home: Home, site: Site) -> None:
    url = site.put("/a.safetensors", model(), tricks=[Trick(status=429, headers={"Retry-After": "300"})])

    async def run() -> DownloadInfo:
        async with home.open() as downloads:
            number = (await downloads.add(url)).id
            await until(lambda: "300 s" in downloads.get(number).message)
            return await downloads.pause(number)

    assert asyncio.run(run()).state == DownloadState.PAUSED


def test_nobody_listens(home: Home) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        with_rules(home, allowed_hosts=frozenset({place}))
        info = home.fetch(f"http://{place}/a.safetensors")
    assert info.state == DownloadState.FAILED
    assert "cannot be reached" in info.message


# The server is odd, or lies


def test_a_server_that_ignores_ranges_starts_anew_and_it_comes_out_right(home: Home, site: Site) -> None:
    content = model(size=2 * MIB)
    assert home.fetch(site.put("/a.safetensors", content, ranges=False, tricks=[Trick(send=MIB)])).state == "done"
    assert (home.models / "Stable-diffusion" / "a.safetensors").read_bytes() == content


def test_a_file_that_changes_between_two_tries_is_never_mixed(home: Home, site: Site) -> None:
    old, new = model(size=2 * MIB), model(size=2 * MIB, seed=1)
    url = site.put("/a.safetensors", old, tricks=[Trick(send=MIB, stall=True)])

    async def run() -> DownloadInfo:
        async with home.open() as downloads:
            number = (await downloads.add(url)).id
            await until(lambda: downloads.get(number).received >= MIB)
            await downloads.pause(number)
            site.put("/a.safetensors", new, etag='"2"')
            await downloads.resume(number)
            return await settled(downloads, number)

    assert asyncio.run(run()).state == DownloadState.DONE
    asked = site.requests("/a.safetensors")[1]
    assert (asked["range"], asked["if-range"]) == (f"bytes={MIB}-", '"1"')
    assert (home.models / "Stable-diffusion" / "a.safetensors").read_bytes() == new


def test_without_a_validator_or_a_sum_nothing_is_resumed_on_trust(home: Home, site: Site) -> None:
    content = model(size=2 * MIB)
    url = site.put("/a.safetensors", content, etag="", tricks=[Trick(send=MIB, stall=True)])

    async def run() -> DownloadInfo:
        async with home.open() as downloads:
            number = (await downloads.add(url)).id
            await until(lambda: downloads.get(number).received >= MIB)
            await downloads.pause(number)
            await downloads.resume(number)
            return await settled(downloads, number)

    assert asyncio.run(run()).state == DownloadState.DONE
    assert "range" not in site.requests("/a.safetensors")[-1]


def test_a_length_that_is_too_long_never_ends_well(home: Home, site: Site) -> None:
    url = site.put("/a.safetensors", model(), ranges=False, tricks=[Trick(claim=10_000) for _ in range(9)])
    info = home.fetch(url)
    assert info.state == DownloadState.FAILED
    assert "broke off" in info.message
    assert not (home.models / "Stable-diffusion").exists()


def test_a_length_that_is_too_short_is_found_out(home: Home, site: Site) -> None:
    info = home.fetch(site.put("/a.safetensors", model(), tricks=[Trick(claim=500)]))
    assert info.state == DownloadState.FAILED
    assert "It is cut off." in info.message
    assert home.parts() == []


def test_a_length_other_than_the_listed_one_is_refused_before_the_body_comes(home: Home, site: Site) -> None:
    listed(site, {"a.safetensors": model()})
    site.put("/hub/owner/name/resolve/main/a.safetensors", model(size=5000))
    info = home.fetch("owner/name")
    assert info.state == DownloadState.FAILED
    assert f"where {len(model())} are listed" in info.message


@pytest.mark.parametrize(("size", "words"), [(5000, "more than it had promised"), (10, "bytes came where")])
def test_a_length_that_is_not_told_is_held_against_the_list(home: Home, site: Site, size: int, words: str) -> None:
    listed(site, {"a.safetensors": model()})
    site.put("/hub/owner/name/resolve/main/a.safetensors", model(size=size), length=False)
    info = home.fetch("owner/name")
    assert info.state == DownloadState.FAILED
    assert words in info.message


def test_a_wrong_sum_deletes_the_file_and_says_so(home: Home, site: Site) -> None:
    info = home.fetch(site.put("/a.safetensors", model()), sha256="0" * 64)
    assert info.state == DownloadState.FAILED
    assert "SHA-256" in info.message
    assert "deleted" in info.message
    assert [path for path in home.models.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_web_page_is_no_model_whatever_it_calls_itself(home: Home, site: Site, kind: str) -> None:
    info = home.fetch(site.put("/a.safetensors", b"\n<!DOCTYPE html><title>Sign in</title>", kind=kind))
    assert info.state == DownloadState.FAILED
    assert "a web page instead of a model" in info.message
    assert home.parts() in ([], [home.models / "Unsorted" / "a.safetensors.part"])


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "forbids this"), (403, "forbids this"), (404, "nothing at this address"), (418, "refuses with status 418")],
)
def test_a_refusal_is_a_sentence_and_not_tried_again(home: Home, site: Site, status: int, words: str) -> None:
    info = home.fetch(site.put("/a.safetensors", b"no", tricks=[Trick(status=status) for _ in range(9)]))
    assert info.state == DownloadState.FAILED
    assert words in info.message
    assert len(site.requests("/a.safetensors")) == 1


def test_a_closed_door_of_the_hub_names_the_token(home: Home, site: Site) -> None:
    with_rules(home, token_hosts={"huggingface": frozenset({site.place})})
    site.put("/hub/api/models/owner/name/tree/main", b"", tricks=[Trick(status=401)])
    assert home.fetch("owner/name").message.startswith("Hugging Face gives this to signed-in users only")
    site.items["/hub/api/models/owner/name/tree/main"].tricks.append(Trick(status=403))
    home.tokens.set("huggingface", "hf_secret123")
    message = home.fetch("owner/name").message
    assert message.startswith("The token that is set was refused.")
    assert "secret" not in message


def test_a_closed_door_of_a_mirror_says_that_no_token_goes_there(home: Home, site: Site) -> None:
    site.put("/hub/api/models/owner/name/tree/main", b"", tricks=[Trick(status=401)])
    assert "Tokens are not sent to mirrors" in home.fetch("owner/name").message


def test_a_length_that_nobody_tells_is_no_hindrance(home: Home, site: Site) -> None:
    info = home.fetch(site.put("/a.safetensors", model(size=2 * MIB), length=False))
    assert info.state == DownloadState.DONE, info


# Where it may go


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("64:ff9b::808:808", True),
        *(
            (address, False)
            for address in (
                *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1"),
                *("224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.0.8", "198.18.0.1", "203.0.113.5"),
                *("::", "::1", "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "ff02::1", "2001:db8::1", "2001::1"),
                *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1"),
                *("64:ff9b:1::1", "2002:7f00:1::", "2002:c0a8:101::1", "no address"),
            )
        ),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/a.safetensors",
        "https://localhost/a.safetensors",
        "https://2130706433/a.safetensors",
        "https://0x7f.1/a.safetensors",
        "https://[::1]/a.safetensors",
        "https://[::ffff:169.254.169.254]/a.safetensors",
        "https://10.0.0.1:8443/a.safetensors",
    ],
)
def test_private_addresses_are_refused_in_every_spelling(home: Home, url: str) -> None:
    info = home.fetch(url)
    assert info.state == DownloadState.FAILED
    assert "private network" in info.message


def test_plain_http_is_for_named_hosts_only(home: Home) -> None:
    assert "must begin with https" in home.fetch("http://example.com/a.safetensors").message


def other_address(site: Site) -> str:
    """The same server under a name that nobody has allowed."""
    return site.url.replace("127.0.0.1", "localhost")


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("https://10.0.0.1/a.safetensors", "private network"),
        ("https://169.254.169.254/latest/meta-data/a.safetensors", "private network"),
        ("OTHER/a.safetensors", "must begin with https"),
        ("OTHERS/a.safetensors", "private network"),
        ("file:///etc/passwd", "must begin with https"),
        ("gopher://127.0.0.1/", "must begin with https"),
        ("https://", "cannot be read"),
    ],
)
def test_a_redirect_is_looked_at_like_an_address_that_was_typed(
    home: Home, site: Site, target: str, words: str
) -> None:
    target = target.replace("OTHERS", other_address(site).replace("http:", "https:")).replace(
        "OTHER", other_address(site)
    )
    site.items["/a.safetensors"] = Item(redirect=target)
    info = home.fetch(f"{site.url}/a.safetensors")
    assert info.state == DownloadState.FAILED, info
    assert words in info.message or "names no host" in info.message
    assert [asked.headers["host"] for asked in site.asked] == [site.place]


def test_redirects_are_followed_and_end_somewhere(home: Home, site: Site) -> None:
    site.put("/real", model())
    site.items["/a.safetensors"] = Item(redirect="/real")
    site.items["/round.safetensors"] = Item(redirect="/round.safetensors")
    assert home.fetch(f"{site.url}/a.safetensors").state == DownloadState.DONE
    assert "round in circles" in home.fetch(f"{site.url}/round.safetensors").message
    assert len(site.requests("/round.safetensors")) == home.rules.redirects + 1


def test_a_name_that_points_elsewhere_at_the_second_look_gains_nothing() -> None:
    """DNS rebinding: each request looks a name up once, and only what was checked then is called."""
    answers = [["8.8.8.8"], ["127.0.0.1"]]

    async def resolve(host: str, port: int) -> list[str]:
        return answers.pop(0)

    async def run() -> list[str]:
        transport = GuardedTransport(frozenset(), 1.0, resolve)
        first = await transport.addresses(httpx.URL("https://rebind.example/a.safetensors"))
        with pytest.raises(AddressRefused, match="private network"):
            await transport.addresses(httpx.URL("https://rebind.example/a.safetensors"))
        return first

    assert asyncio.run(run()) == ["8.8.8.8"]


def test_one_private_address_among_public_ones_is_enough_to_refuse(home: Home) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["8.8.8.8", "192.168.0.1"]

    home.options["resolve"] = resolve
    assert "private network" in home.fetch("https://mixed.example/a.safetensors").message


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes its certificate with openssl")
@pytest.mark.parametrize(("host", "works"), [("models.example", True), ("others.example", False)])
def test_the_certificate_is_that_of_the_name_though_the_number_is_called(
    home: Home, monkeypatch: pytest.MonkeyPatch, host: str, works: bool
) -> None:
    key, certificate = home.root / "key.pem", home.root / "certificate.pem"
    wishes = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=models.example"
    names = ["-addext", "subjectAltName=DNS:models.example", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", "-x509", *wishes.split(), *names], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    asked: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    site = Site(context)
    try:
        site.put("/a.safetensors", model())
        home.options["resolve"] = resolve
        with_rules(home, allowed_hosts=frozenset({f"{host}:{site.port}"}), tries=1)
        info = home.fetch(f"https://{host}:{site.port}/a.safetensors")
    finally:
        site.close()
    assert asked == [host], "looked up once: what was checked is what was called"
    if works:
        assert info.state == DownloadState.DONE, info
        assert site.asked[0].headers["host"] == f"{host}:{site.port}"
    else:
        assert "cannot be reached" in info.message
        assert "CERTIFICATE_VERIFY_FAILED" in info.message
        assert site.asked == []


# Tokens


def test_a_token_goes_to_its_own_host_and_no_further(home: Home, site: Site) -> None:
    with_rules(
        home,
        allowed_hosts=frozenset({site.place, f"localhost:{site.port}"}),
        token_hosts={"huggingface": frozenset({site.place})},
    )
    home.tokens.set("huggingface", "hf_secret123")
    listed(site, {"a.safetensors": model()})
    site.items["/hub/owner/name/resolve/main/a.safetensors"] = Item(redirect=f"{other_address(site)}/cdn")
    site.put("/cdn", model())
    assert home.fetch("owner/name").state == DownloadState.DONE
    told = {asked.headers["host"] for asked in site.asked if "authorization" in asked.headers}
    assert told == {site.place}
    assert site.requests("/hub/owner/name/resolve/main/a.safetensors")[0]["authorization"] == "Bearer hf_secret123"
    assert "authorization" not in site.requests("/cdn")[0]
    assert b"hf_secret123" not in (home.root / "outputs" / "library.sqlite").read_bytes()


def test_a_mirror_is_not_told_the_token(home: Home, site: Site) -> None:
    home.tokens.set("huggingface", "hf_secret123")
    listed(site, {"a.safetensors": model()})
    home.fetch("owner/name")
    assert site.asked
    assert all("authorization" not in asked.headers for asked in site.asked)


def test_tokens_lie_in_a_file_for_their_owner_alone(home: Home) -> None:
    home.tokens.set("civitai", " 0123456789abcdef\n")
    file = home.root / "outputs" / "tokens.json"
    assert json.loads(file.read_text()) == {"civitai": "0123456789abcdef"}
    if os.name == "posix":
        assert file.stat().st_mode & 0o777 == 0o600
    assert home.tokens.known() == {"huggingface": False, "civitai": True}
    home.tokens.forget("civitai")
    assert home.tokens.known() == {"huggingface": False, "civitai": False}
    assert "0123456789abcdef" not in file.read_text()
    for wrong in ("", "short", "two words here", "line\r\nX-Evil: 1", "schlüssel-schlüssel"):
        with pytest.raises(BadSource, match="does not look like a token"):
            home.tokens.set("civitai", wrong)


# Pause, cancel, restart


def test_pause_keeps_what_has_come_and_resume_goes_on(home: Home, site: Site) -> None:
    content = model(size=3 * MIB)
    url = site.put("/a.safetensors", content, tricks=[Trick(send=2 * MIB, stall=True)])

    async def run() -> DownloadInfo:
        async with home.open() as downloads:
            number = (await downloads.add(url)).id
            await until(lambda: downloads.get(number).received >= 2 * MIB)
            paused = await downloads.pause(number)
            assert (paused.state, paused.received) == (DownloadState.PAUSED, 2 * MIB)
            with pytest.raises(DownloadNotNow, match="is paused"):
                await downloads.pause(number)
            await downloads.resume(number)
            return await settled(downloads, number)

    assert asyncio.run(run()).state == DownloadState.DONE
    assert site.requests("/a.safetensors")[1]["range"] == f"bytes={2 * MIB}-"


def test_cancel_deletes_what_has_come_and_retry_starts_anew(home: Home, site: Site) -> None:
    url = site.put("/a.safetensors", model(size=3 * MIB), tricks=[Trick(send=2 * MIB, stall=True)])

    async def run() -> DownloadInfo:
        async with home.open() as downloads:
            number = (await downloads.add(url)).id
            await until(lambda: downloads.get(number).received >= 2 * MIB)
            assert home.parts() != []
            assert (await downloads.cancel(number)).state == DownloadState.CANCELLED
            assert home.parts() == []
            with pytest.raises(DownloadNotNow):
                await downloads.cancel(number)
            await downloads.resume(number)
            return await settled(downloads, number)

    assert asyncio.run(run()).state == DownloadState.DONE
    assert "range" not in site.requests("/a.safetensors")[1]


def test_a_closed_inkstone_goes_on_at_the_next_start(home: Home, site: Site) -> None:
    content = model(size=3 * MIB)
    url = site.put("/a.safetensors", content, tricks=[Trick(send=2 * MIB, stall=True)])

    async def first() -> int:
        async with home.open() as downloads:
            number = (await downloads.add(url)).id
            await until(lambda: downloads.get(number).received >= 2 * MIB)
            return number

    async def second(number: int) -> DownloadInfo:
        async with home.open() as downloads:
            return await settled(downloads, number)

    assert asyncio.run(second(asyncio.run(first()))).state == DownloadState.DONE
    assert site.requests("/a.safetensors")[1]["range"] == f"bytes={2 * MIB}-"
    assert (home.models / "Stable-diffusion" / "a.safetensors").read_bytes() == content


CHILD = """
import asyncio, sys
from pathlib import Path
from webui.db import Database
from webui.downloads import Downloads, Hooks, Rules, Tokens

async def main(root, place, url):
    root = Path(root)
    database = Database(root / "outputs" / "library.sqlite")
    rules, hooks = Rules(allowed_hosts=frozenset({place}), margin_bytes=0), Hooks(lambda path: None, lambda path: None)
    downloads = Downloads(database, root / "models", Tokens(root / "tokens.json"), rules, hooks)
    await downloads.start()
    await downloads.add(url)
    await asyncio.sleep(300)

asyncio.run(main(*sys.argv[1:]))
"""


def test_after_a_kill_in_the_middle_the_rest_is_fetched(home: Home, site: Site) -> None:
    content = model(size=6 * MIB)
    url = site.put("/a.safetensors", content, tricks=[Trick(send=4 * MIB + 7, stall=True)])
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(home.root), site.place, url], cwd=ROOT)
    part = home.models / "Unsorted" / "a.safetensors.part"
    try:
        wait_for(lambda: part.exists() and part.stat().st_size >= 2 * MIB)
    finally:
        child.kill()
    assert child.wait() == (-signal.SIGKILL if os.name == "posix" else 1)

    async def run() -> DownloadInfo:
        async with home.open() as downloads:
            return await settled(downloads, 1)

    assert asyncio.run(run()).state == DownloadState.DONE
    start = int(site.requests("/a.safetensors")[1]["range"].removeprefix("bytes=").rstrip("-"))
    assert start >= 2 * MIB
    assert (home.models / "Stable-diffusion" / "a.safetensors").read_bytes() == content


@pytest.mark.parametrize("given", [True, False])
def test_an_end_that_could_not_be_written_down_is_seen_at_the_next_start(home: Home, site: Site, given: bool) -> None:
    """The power went after the file had its name and before the database knew."""
    url = site.put("/a.safetensors", model())
    assert home.fetch(url, kind=Kind.VAE if given else None).state == DownloadState.DONE

    async def run() -> DownloadInfo:
        downloads, database = home.make()
        database.execute("UPDATE downloads SET state = 'running'")
        await downloads.start()
        info = await settled(downloads, 1)
        await downloads.close()
        database.close()
        return info

    info = asyncio.run(run())
    assert (info.state, info.received) == (DownloadState.DONE, len(model())), info
    assert len(site.asked) == 1


def test_a_database_that_cannot_be_written_loses_no_download(home: Home, site: Site) -> None:
    url = site.put("/a.safetensors", model(), tricks=[Trick(chunk=500, pause=0.2)])

    async def run() -> tuple[DownloadInfo, DownloadInfo]:
        downloads, database = home.make()
        await downloads.start()
        number = (await downloads.add(url)).id
        await until(lambda: downloads.get(number).received > 0)
        database.execute("PRAGMA query_only = ON")
        await until(lambda: downloads.get(number).state != DownloadState.RUNNING)
        lost = downloads.get(number)
        database.execute("PRAGMA query_only = OFF")
        await downloads.resume(number)
        done = await settled(downloads, number)
        await downloads.close()
        database.close()
        return lost, done

    lost, done = asyncio.run(run())
    assert lost.state == DownloadState.PAUSED
    assert "could not be written down" in lost.message
    assert done.state == DownloadState.DONE, done


def test_two_downloads_never_write_the_same_file(home: Home, site: Site) -> None:
    first = site.put("/1/a.safetensors", model(), tricks=[Trick(send=9, stall=True)])
    second = site.put("/2/a.safetensors", model(seed=2))

    async def run() -> DownloadInfo:
        async with home.open() as downloads:
            await downloads.add(first, Kind.VAE)
            await until(lambda: site.asked != [])
            return await settled(downloads, (await downloads.add(second, Kind.VAE)).id)

    info = asyncio.run(run())
    assert info.state == DownloadState.FAILED
    assert "is being fetched already, by download 1" in info.message


def test_pausing_and_resuming_at_any_moment_harms_nothing(home: Home, site: Site) -> None:
    content = model(size=5 * MIB)
    url = site.put("/a.safetensors", content, tricks=[Trick(pause=0.002) for _ in range(99)])

    async def run() -> DownloadInfo:
        async with home.open() as downloads:
            number = (await downloads.add(url, sha256=sha256(content))).id
            for step in range(25):
                await asyncio.sleep(0.004 * (step % 7))
                if downloads.get(number).state == DownloadState.RUNNING:
                    await downloads.pause(number)
                if downloads.get(number).state == DownloadState.PAUSED:
                    await downloads.resume(number)
            return await settled(downloads, number)

    assert asyncio.run(run()).state == DownloadState.DONE
    assert (home.models / "Stable-diffusion" / "a.safetensors").read_bytes() == content
    assert home.parts() == []


def test_a_damaged_part_is_found_out_by_its_sum_and_fetched_anew(home: Home, site: Site) -> None:
    content = model(size=2 * MIB)
    part = home.models / "VAE" / "a.safetensors.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"\0" * MIB)
    url = site.put("/a.safetensors", content)

    info = home.fetch(url, kind=Kind.VAE, sha256=sha256(content))
    assert info.state == DownloadState.DONE, info
    assert [asked.get("range") for asked in site.requests("/a.safetensors")] == [f"bytes={MIB}-", None]
    assert (home.models / "VAE" / "a.safetensors").read_bytes() == content


def test_only_so_many_run_at_once(home: Home, site: Site) -> None:
    urls = [site.put(f"/{n}.safetensors", model(), tricks=[Trick(send=9, stall=True)]) for n in range(3)]

    async def run() -> list[DownloadState]:
        async with home.open() as downloads:
            numbers = [(await downloads.add(url)).id for url in urls]
            await until(lambda: len(site.asked) == 2)
            states = [downloads.get(number).state for number in numbers]
            await downloads.cancel(numbers[0])
            await until(lambda: len(site.asked) == 3)
            return states

    assert asyncio.run(run()) == [DownloadState.RUNNING, DownloadState.RUNNING, DownloadState.QUEUED]


def test_a_job_can_wait_for_a_model_that_is_on_its_way(home: Home, site: Site) -> None:
    url = site.put("/dream.safetensors", model(), tricks=[Trick(send=9, stall=True)])

    async def run() -> None:
        async with home.open() as downloads:
            assert downloads.waiting_for("dream") is None
            number = (await downloads.add(url)).id
            for name in ("dream", "Dream.safetensors", url):
                found = downloads.waiting_for(name)
                assert found
                assert found.id == number
            assert (await downloads.add(url)).id == number, "asked for twice, fetched once"
            await until(lambda: site.asked != [])
            await downloads.pause(number)
            await downloads.resume(number)
            assert (await settled(downloads, number)).state == DownloadState.DONE
            assert downloads.waiting_for("dream") is None
            await downloads.remove(number)
            assert downloads.list() == ()
            with pytest.raises(DownloadNotFound):
                downloads.get(number)

    asyncio.run(run())
    assert (home.models / "Stable-diffusion" / "dream.safetensors").exists(), "the model stays"


# What lies there already, and how much room there is


def test_the_same_model_is_not_fetched_twice(home: Home, site: Site) -> None:
    url = site.put("/a.safetensors", model())
    for _ in range(2):
        info = home.fetch(url, kind=Kind.CHECKPOINT, sha256=sha256(model()))
        assert info.state == DownloadState.DONE, info
    assert len(site.asked) == 1


@pytest.mark.parametrize("known", [True, False])
def test_another_model_of_the_same_name_is_never_overwritten(home: Home, site: Site, known: bool) -> None:
    path = home.models / "VAE" / "a.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    url = site.put("/a.safetensors", model())
    info = home.fetch(url, kind=Kind.VAE, sha256=sha256(model()) if known else None)
    assert info.state == DownloadState.FAILED
    assert "under another name" in info.message
    assert path.read_bytes() == b"mine"
    assert site.asked == []


def test_a_finished_file_never_replaces_one_that_came_in_between(tmp_path: Path) -> None:
    part, target = tmp_path / "a.part", tmp_path / "a"
    part.write_bytes(b"new")
    target.write_bytes(b"mine")
    with pytest.raises(DownloadFailed, match="is there already"):
        place(part, target)
    assert (part.read_bytes(), target.read_bytes()) == (b"new", b"mine")


def test_room_is_looked_for_first(home: Home, site: Site) -> None:
    home.options["free_bytes"] = lambda _: 500
    info = home.fetch(site.put("/a.safetensors", model()))
    assert info.state == DownloadState.PAUSED
    assert "Free some space" in info.message
    assert (home.models / "Unsorted" / "a.safetensors.part").stat().st_size == 0


def test_room_is_counted_with_a_margin(tmp_path: Path) -> None:
    check_room(tmp_path / "not" / "there", 10, 5, lambda _: 15)
    with pytest.raises(NoRoom, match=r"needs 0.0 MB"):
        check_room(tmp_path, 10, 5, lambda _: 14)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is always full")
def test_a_disk_that_fills_up_pauses_the_download(home: Home, site: Site) -> None:
    part = home.models / "VAE" / "a.safetensors.part"
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    info = home.fetch(site.put("/a.safetensors", model()), kind=Kind.VAE)
    assert info.state == DownloadState.PAUSED
    assert "The disk is full" in info.message


def test_a_part_knows_its_sum_after_a_second_opening(tmp_path: Path) -> None:
    path = tmp_path / "x" / "a.part"
    for content in (b"one", b"two"):
        part = Part(path)
        part.open()
        while part.read_on():
            pass
        part.write(content)
        part.close()
    assert (part.size, part.sha256) == (6, sha256(b"onetwo"))
    part.write(b"too late")
    assert path.read_bytes() == b"onetwo"


# Hugging Face


def listed(site: Site, files: dict[str, bytes], repo: str = "owner/name", revision: str = "main") -> None:
    """A repository as the hub lists it, weights with their LFS sums, and its files."""
    rows: list[dict[str, Any]] = [{"type": "directory", "path": "unet", "oid": "0", "size": 0}]
    for path, content in files.items():
        row: dict[str, Any] = {"type": "file", "path": path, "oid": "0", "size": len(content)}
        if path.endswith((".safetensors", ".bin", ".ckpt")):
            row["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
        rows.append(row)
        site.put(f"/hub/{repo}/resolve/{revision}/{path}", content)
    site.put(f"/hub/api/models/{repo}/tree/{revision}", rows)


DIFFUSERS = {
    "model_index.json": json.dumps(
        {
            "_class_name": "StableDiffusionPipeline",
            "unet": ["diffusers", "UNet2DConditionModel"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
            "image_encoder": [None, None],
        }
    ).encode(),
    "README.md": b"# hi",
    "v1-5.ckpt": b"pickle",
    "v1-5.safetensors": model(),
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": model(size=4000),
    "unet/diffusion_pytorch_model.fp16.safetensors": model(size=2000),
    "unet/diffusion_pytorch_model.non_ema.safetensors": model(size=4000),
    "unet/diffusion_pytorch_model.bin": b"pickle",
    "text_encoder/config.json": b"{}",
    "text_encoder/model-00001-of-00002.safetensors": model(size=300),
    "text_encoder/model-00002-of-00002.safetensors": model(size=200),
    "text_encoder/model.safetensors.index.json": b"{}",
    "text_encoder/pytorch_model.bin.index.json": b"{}",
    "text_encoder/pytorch_model-00001-of-00002.bin": b"pickle",
    "tokenizer/vocab.json": b"{}",
    "tokenizer/merges.txt": b"#version",
    "safety_checker/config.json": b"{}",
    "safety_checker/model.safetensors": model(),
    "image_encoder/model.safetensors": model(),
    "unet/openvino_model.bin": b"x",
}
NEEDED = {
    "model_index.json": "model_index.json",
    "unet/config.json": "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors": "unet/diffusion_pytorch_model.fp16.safetensors",
    "text_encoder/config.json": "text_encoder/config.json",
    "text_encoder/model-00001-of-00002.safetensors": "text_encoder/model-00001-of-00002.safetensors",
    "text_encoder/model-00002-of-00002.safetensors": "text_encoder/model-00002-of-00002.safetensors",
    "text_encoder/model.safetensors.index.json": "text_encoder/model.safetensors.index.json",
    "tokenizer/vocab.json": "tokenizer/vocab.json",
    "tokenizer/merges.txt": "tokenizer/merges.txt",
}


def test_of_a_diffusers_repository_only_the_needed_files_come(home: Home, site: Site) -> None:
    listed(site, DIFFUSERS)
    info = home.fetch("owner/name")
    assert (info.state, info.kind, info.name) == (DownloadState.DONE, Kind.CHECKPOINT, "name"), info
    folder = home.models / "Stable-diffusion" / "name"
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == {ours: DIFFUSERS[theirs] for ours, theirs in NEEDED.items()}
    assert info.received == info.total == sum(map(len, found.values()))
    assert home.parts() == []
    assert home.fetch("owner/name").state == DownloadState.DONE, "it is there already"


def test_a_diffusers_repository_goes_on_file_by_file(home: Home, site: Site) -> None:
    listed(site, DIFFUSERS)
    stalling = "/hub/owner/name/resolve/main/text_encoder/model-00002-of-00002.safetensors"
    site.items[stalling].tricks.append(Trick(send=100, stall=True))

    async def first() -> int:
        async with home.open() as downloads:
            number = (await downloads.add("owner/name")).id
            await until(lambda: len(site.requests(stalling)) == 1)
            part = home.models / "Stable-diffusion" / "name.part"
            assert not (part / "model_index.json").exists(), "the folder is no model yet"
            await downloads.pause(number)
            return number

    async def second(number: int) -> DownloadInfo:
        async with home.open() as downloads:
            await downloads.resume(number)
            return await settled(downloads, number)

    assert asyncio.run(second(asyncio.run(first()))).state == DownloadState.DONE
    fetched = [
        asked.path for asked in site.asked if "/resolve/" in asked.path and not asked.path.endswith("index.json")
    ]
    assert [path for path in fetched if fetched.count(path) > 1] == [stalling] * 2


def test_pickles_come_only_where_there_is_nothing_else() -> None:
    files = ["unet/a.txt", "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.bin", "b.bin"]
    chosen = diffusers_files([Entry(type="file", path=path) for path in files], frozenset({"unet"}))
    assert {ours: row.path for ours, row in chosen.items()} == {
        "unet/a.txt": "unet/a.txt",
        "unet/diffusion_pytorch_model.bin": "unet/diffusion_pytorch_model.fp16.bin",
    }
    with pytest.raises(BadSource, match="no weights"):
        diffusers_files([Entry(type="file", path="unet/model.onnx")], frozenset({"unet"}))
    with pytest.raises(DownloadFailed, match="no list of parts"):
        components([])


def test_one_file_of_a_repository_by_any_way_to_write_it(home: Home, site: Site) -> None:
    listed(site, {"sub/dream.safetensors": model(), "other.safetensors": model(seed=1)})
    for source in (
        "owner/name:sub/dream.safetensors",
        "owner/name/sub/dream.safetensors",
        "https://huggingface.co/owner/name/blob/main/sub/dream.safetensors",
        f"{site.url}/hub/owner/name/resolve/main/sub/dream.safetensors?download=true",
    ):
        info = home.fetch(source, kind=Kind.CHECKPOINT)
        assert info.state == DownloadState.DONE, info
    assert len(site.requests("/hub/owner/name/resolve/main/sub/dream.safetensors")) == 1
    assert (home.models / "Stable-diffusion" / "dream.safetensors").read_bytes() == model()


def test_a_repository_with_several_models_asks_which(home: Home, site: Site) -> None:
    listed(site, {"a.safetensors": model(), "b.safetensors": model(), "c.ckpt": b"pickle"})
    info = home.fetch("owner/name")
    assert info.state == DownloadState.FAILED
    assert "owner/name:a.safetensors" in info.message
    assert "c.ckpt" not in info.message
    assert "It has: a.safetensors" in home.fetch("owner/name:aa.safetensors").message


def test_a_file_that_is_named_like_all_others_gets_the_name_of_its_repository(home: Home, site: Site) -> None:
    files = {"diffusion_pytorch_model.safetensors": model(), "diffusion_pytorch_model.fp16.safetensors": model(size=9)}
    listed(site, {**files, "config.json": b"{}", "diffusion_pytorch_model.bin": b"pickle"})
    assert home.fetch("owner/name", kind=Kind.VAE).name == "name.safetensors"
    assert (home.models / "VAE" / "name.safetensors").read_bytes() == model(size=9)


def test_a_long_list_comes_in_pages(home: Home, site: Site) -> None:
    listed(site, {"a.safetensors": model()})
    last = site.items["/hub/api/models/owner/name/tree/main"]
    site.items["/page2"] = last
    link = {"Link": f'<{site.url}/page2>; rel="next"'}
    site.items["/hub/api/models/owner/name/tree/main"] = Item(b"[]", tricks=[Trick(headers=link)])
    assert home.fetch("owner/name").state == DownloadState.DONE


def test_a_repository_cannot_write_outside_its_folder(home: Home, site: Site) -> None:
    evil = {**DIFFUSERS, "unet/../../../evil.json": b"{}"}
    listed(site, evil)
    index = json.loads(evil["model_index.json"]) | {"unet/../../..": ["a", "b"]}
    site.put("/hub/owner/name/resolve/main/model_index.json", index)
    info = home.fetch("owner/name")
    assert info.state == DownloadState.FAILED
    assert "not written to this disk" in info.message
    assert not list(home.root.rglob("evil.json"))


# Civitai


def version(site: Site, files: list[dict[str, Any]], kind: str = "LORA") -> None:
    body = {"id": 456, "modelId": 123, "name": "v1", "model": {"name": "Ink", "type": kind}, "files": files}
    site.put("/civitai/api/v1/model-versions/456", body)
    site.put("/civitai/api/v1/models/123", {"id": 123, "type": kind, "modelVersions": [body, {"id": 1, "files": []}]})


def civitai_file(site: Site, name: str, content: bytes, **more: Any) -> dict[str, Any]:
    site.put(f"/api/download/{name}", content)
    return {
        "name": name,
        "type": "Model",
        "sizeKB": len(content) / 1024,
        "hashes": {"AutoV2": "0123456789", "SHA256": sha256(content).upper()},
        "downloadUrl": f"{site.url}/api/download/{name}",
        **more,
    }


@pytest.mark.parametrize(
    "source",
    [
        "https://civitai.com/models/123?modelVersionId=456",
        "https://civitai.com/models/123/ink-and-wash",
        "https://civitai.com/api/download/models/456?token=secret0123456789",
        "urn:air:sdxl:lora:civitai:123@456",
    ],
)
def test_civitai_gives_the_main_file_with_its_kind_and_sum(home: Home, site: Site, source: str) -> None:
    training = civitai_file(site, "data.zip", b"zip", type="Training Data")
    other = civitai_file(site, "ink.ckpt", b"pickle", primary=False)
    version(site, [training, other, civitai_file(site, "ink v1.safetensors", model("x"), primary=True)])
    site.items["/api/download/ink%20v1.safetensors"] = site.items["/api/download/ink v1.safetensors"]
    info = home.fetch(source)
    assert (info.state, info.kind) == (DownloadState.DONE, Kind.LORA), info
    assert (home.models / "Lora" / "ink v1.safetensors").read_bytes() == model("x")
    assert "secret" not in info.source


def test_civitai_links_may_ask_for_a_certain_file(home: Home, site: Site) -> None:
    full = civitai_file(site, "full.safetensors", model(size=9), primary=True, metadata={"size": "full", "fp": "fp32"})
    half = civitai_file(site, "half.safetensors", model(), metadata={"size": "pruned", "fp": "fp16"})
    version(site, [full, half], "Checkpoint")
    info = home.fetch("https://civitai.com/api/download/models/456?type=Model&size=pruned&fp=fp16")
    assert (info.name, info.kind) == ("half.safetensors", Kind.CHECKPOINT)


def test_civitai_files_are_held_against_their_sum(home: Home, site: Site) -> None:
    file = civitai_file(site, "a.safetensors", model())
    site.put("/api/download/a.safetensors", model(seed=9))
    version(site, [file])
    assert "SHA-256" in home.fetch("https://civitai.com/models/123").message


def test_civitai_cannot_make_us_copy_our_own_files(home: Home, site: Site) -> None:
    version(site, [civitai_file(site, "a.safetensors", model(), downloadUrl="file:///etc/passwd")])
    assert "an address for this file that is none" in home.fetch("https://civitai.com/models/123").message


def test_an_api_that_answers_nonsense_is_a_sentence(home: Home, site: Site) -> None:
    site.put("/civitai/api/v1/models/123", ["?"])
    assert "cannot be read" in home.fetch("https://civitai.com/models/123").message
    site.put("/civitai/api/v1/models/123", b"[" * 100_000)
    assert "does not answer as it should" in home.fetch("https://civitai.com/models/123").message
    site.put("/hub/api/models/owner/name/tree/main", {"error": "?"})
    assert "cannot be read" in home.fetch("owner/name").message


# Paths


def test_a_path_is_linked_and_costs_no_room(home: Home, tmp_path: Path) -> None:
    original = tmp_path / "elsewhere" / "dream.safetensors"
    original.parent.mkdir()
    original.write_bytes(model("lora"))
    info = home.fetch(str(original))
    assert (info.state, info.kind) == (DownloadState.DONE, Kind.LORA), info
    assert (home.models / "Lora" / "dream.safetensors").samefile(original)
    assert info.received == info.total == original.stat().st_size


def test_a_path_is_copied_on_request(home: Home, tmp_path: Path) -> None:
    original = tmp_path / "dream.safetensors"
    original.write_bytes(model(size=9 * MIB))
    info = home.fetch(str(original), mode="copy", kind=Kind.CHECKPOINT)
    assert info.state == DownloadState.DONE, info
    copy = home.models / "Stable-diffusion" / "dream.safetensors"
    assert copy.read_bytes() == original.read_bytes()
    assert not copy.samefile(original)


@pytest.mark.parametrize("mode", ["link", "copy"])
def test_a_diffusers_folder_is_linked_or_copied(home: Home, tmp_path: Path, mode: str) -> None:
    folder = tmp_path / "dream"
    for path, content in DIFFUSERS.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    info = home.fetch(str(folder), mode=mode)
    assert info.state == DownloadState.DONE, info
    target = home.models / "Stable-diffusion" / "dream"
    assert target.samefile(folder) is (mode == "link")
    assert (target / "unet" / "config.json").read_bytes() == b"{}"


@pytest.mark.parametrize(
    ("path", "words"),
    [("gone.safetensors", "There is no file"), ("notes.txt", "no model file"), ("broken.safetensors", "no header")],
)
def test_what_is_no_model_is_not_linked(home: Home, tmp_path: Path, path: str, words: str) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "broken.safetensors").write_bytes(b"hello hello hello")
    info = home.fetch(str(tmp_path / path))
    assert info.state == DownloadState.FAILED
    assert words in info.message
    assert not home.models.exists()


# What is typed


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("owner/name", HubSource("owner/name")),
        (" 'owner/name' ", HubSource("owner/name")),
        ("owner/name@v2:a.gguf", HubSource("owner/name", "a.gguf", "v2")),
        ("https://huggingface.co/owner/name/tree/main", HubSource("owner/name")),
        ("https://hf-mirror.com/owner/name/resolve/v2/a%20b.ckpt", HubSource("owner/name", "a b.ckpt", "v2")),
        ("https://civitai.red/models/1?modelVersionId=2", CivitaiSource(1, 2, (), "civitai.red")),
        ("https://example.com/a.safetensors?sig=1#x", UrlSource("https://example.com/a.safetensors?sig=1")),
        ("/data/a.safetensors", PathSource(Path("/data/a.safetensors"))),
        ("file:///data/a%20b.safetensors", PathSource(Path("/data/a b.safetensors"))),
    ],
)
def test_what_a_user_types_is_understood(text: str, source: Any) -> None:
    parsed = parse(text, Rules())
    assert parsed == source
    assert parse(parsed.text, Rules()).text == parsed.text, "what is stored says the same"


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "dream",
            "a" * 3000,
            "owner/name:readme.md",
            "../a.safetensors",
            "\\\\nas\\a.safetensors",
            "//nas/a.ckpt",
        ),
        *(
            "file://nas/a.ckpt",
            "ftp://example.com/a.ckpt",
            "https://",
            "https://[x/a.ckpt",
            "https://u:p@example.com/a",
        ),
        *("https://huggingface.co/datasets/a/b", "https://huggingface.co/spaces/a/b", "https://huggingface.co/a"),
        *("https://civitai.com/images/5", "../../etc/x:a.ckpt", "a/b\nc"),
    ],
)
def test_what_cannot_be_added_is_refused_at_once(text: str) -> None:
    with pytest.raises(BadSource):
        parse(text, Rules())


def test_a_signed_address_is_not_shown(home: Home) -> None:
    assert shown("https://example.com/a.ckpt?sig=secret") == "https://example.com/a.ckpt"
    assert shown("owner/name:a.ckpt") == "owner/name:a.ckpt"


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("dream.safetensors", "dream.safetensors"),
        ("../../x.ckpt", "_.._x.ckpt"),
        ("a/b\\c:d*e?.ckpt", "a_b_c_d_e_.ckpt"),
        ("CON.safetensors", "_CON.safetensors"),
        (" .hidden. ", "hidden"),
        ("a\u202egpj.ckpt", "a_gpj.ckpt"),
        ("水墨.safetensors", "水墨.safetensors"),
        ("x" * 300 + ".safetensors", "x" * 188 + ".safetensors"),
    ],
)
def test_names_become_safe(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_names_and_paths_without_a_meaning_are_refused() -> None:
    for name in ("", "..", "///", ". ."):
        with pytest.raises(BadSource):
            safe_name(name)
    assert safe_path("unet/config.json") == "unet/config.json"
    for path in ("../x", "/x", "a//b", "a/./b", "a\\b", "con/x"):
        with pytest.raises(BadSource):
            safe_path(path)


def test_wishes_are_checked_when_they_are_made(home: Home) -> None:
    async def run() -> None:
        async with home.open() as downloads:
            wishes: list[dict[str, Any]] = [{"kind": Kind.BROKEN}, {"sha256": "12"}, {"name": ".."}]
            for wish in wishes:
                with pytest.raises(PipelineError):
                    await downloads.add("owner/name", **wish)
            assert downloads.list() == ()

    asyncio.run(run())


# HTTP


@pytest.fixture
def client(home: Home) -> Generator[TestClient, None, None]:
    from webui.api import downloads as api
    from webui.api import errors

    downloads, database = home.make()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await downloads.start()
        yield
        await downloads.close()
        database.close()

    app = FastAPI(lifespan=lifespan)
    errors.add_handlers(app)
    app.include_router(api.routes(downloads))
    with TestClient(app) as client:
        yield client


def test_the_life_of_a_download_over_http(client: TestClient, home: Home, site: Site) -> None:
    url = site.put("/a.safetensors", model(), tricks=[Trick(send=9, stall=True)])
    answer = client.post("/api/v1/downloads", json={"source": url, "kind": "vae"})
    assert answer.status_code == 201, answer.text
    number = answer.json()["id"]
    path = f"/api/v1/downloads/{number}"
    wait_for(lambda: site.asked != [])
    assert client.post(f"{path}/pause").json()["state"] == "paused"
    assert client.get("/api/v1/downloads").json()[0]["state"] == "paused"
    assert client.post(f"{path}/resume").status_code == 200
    wait_for(lambda: client.get(path).json()["state"] == "done")
    refused = client.post(f"{path}/cancel")
    assert refused.status_code // 100 == 4
    assert refused.json()["error"]["type"] == "DownloadNotNow"
    assert client.delete(path).status_code == 204
    assert client.get(path).json()["error"]["type"] == "DownloadNotFound"
    assert client.get("/api/v1/downloads").json() == []


def test_what_cannot_be_added_is_an_error_over_http(client: TestClient) -> None:
    answer = client.post("/api/v1/downloads", json={"source": "dream"})
    assert answer.status_code // 100 == 4
    assert answer.json()["error"]["type"] == "BadSource"
    assert client.post("/api/v1/downloads", json={"source": "a/b", "evil": 1}).status_code == 422


def test_tokens_go_in_and_never_come_out(client: TestClient) -> None:
    answers = [
        client.put("/api/v1/tokens/huggingface", json={"token": "hf_0123456789"}),
        client.get("/api/v1/tokens"),
        client.put("/api/v1/tokens/huggingface", json={"token": "hf 0123456789"}),
        client.put("/api/v1/tokens/huggingface", json={"token": "hf_0123456789" * 99}),
        client.put("/api/v1/tokens/elsewhere", json={"token": "hf_0123456789"}),
    ]
    assert [answer.status_code // 100 for answer in answers] == [2, 2, 4, 4, 4]
    assert all("0123456789" not in answer.text for answer in answers)
    assert answers[1].json() == {"huggingface": {"set": True}, "civitai": {"set": False}}
    assert client.delete("/api/v1/tokens/huggingface").json() == {"set": False}


def test_the_web_process_loads_no_torch_for_it() -> None:
    code = "import sys, webui.downloads; assert not {'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
