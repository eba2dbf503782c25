"""What a user typed -> what it names. Reads nothing: no disk, no network."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit
from urllib.request import url2pathname

from webui.downloads.folders import SUFFIXES
from webui.downloads.types import HUGGING_FACE, BadSource, Rules

HELP = (
    "Give a Hugging Face name (owner/name or owner/name:file.safetensors), the address of a Civitai model, "
    "any https address of a model file, or the full path of a file on this computer."
)
REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
HUB_HOSTS = frozenset({"huggingface.co", "hf.co", "hf-mirror.com"})
SISTERS = frozenset({"civitai.red", "civitai.green"})
CIVITAI_HOSTS = frozenset({"civitai.com", "www.civitai.com"}) | SISTERS
AIR = re.compile(r"(?:urn:air:\S*:)?civitai:(\d{1,18})@(\d{1,18})")
"""Civitai's own way to write a version: urn:air:sdxl:checkpoint:civitai:827184@2514310."""

NOT_MODELS = frozenset({"datasets", "spaces", "docs", "blog", "papers", "collections"})


@dataclass(frozen=True)
class HubSource:
    repo: str
    path: str = ""
    """A file in it; empty: the whole, or its only model."""

    revision: str = "main"

    @property
    def text(self) -> str:
        at = "" if self.revision == "main" else f"@{self.revision}"
        return f"{self.repo}{at}{':' if self.path else ''}{self.path}"


@dataclass(frozen=True)
class CivitaiSource:
    model: int | None
    version: int | None
    wishes: tuple[tuple[str, str], ...] = ()
    """Which of a version's files: type, format, size and fp, as in Civitai's own download links."""

    site: str = ""
    """One of its sister sites, which show other models; empty: the main one, or what the settings name."""

    @property
    def text(self) -> str:
        wishes = f"?{urlencode(self.wishes)}" if self.wishes else ""
        site = self.site or "civitai.com"
        if self.version is not None:
            return f"https://{site}/api/download/models/{self.version}{wishes}"
        return f"https://{site}/models/{self.model}"


@dataclass(frozen=True)
class UrlSource:
    url: str

    @property
    def text(self) -> str:
        return self.url


@dataclass(frozen=True)
class PathSource:
    path: Path

    @property
    def text(self) -> str:
        return str(self.path)


Source = HubSource | CivitaiSource | UrlSource | PathSource


def parse(text: str, rules: Rules) -> Source:
    """Raises BadSource, which says what can be given."""
    text = text.strip().strip("\"'")
    if not text or len(text) > 2000 or not text.isprintable():
        raise BadSource(HELP)
    if text.startswith(("\\\\", "//")):
        raise BadSource("A path on another computer is not opened. Mount it as a drive or folder first.")
    if air := AIR.fullmatch(text):
        return CivitaiSource(int(air[1]), int(air[2]))
    if "://" in text or text.startswith("file:"):
        return _address(text, rules)
    if text.startswith(("/", "~", "./", "../")) or re.match(r"[A-Za-z]:[\\/]", text):
        return _path(Path(text))
    return _hub_name(text)


def shown(source: str) -> str:
    """A source for pages and logs: an address without its query, which may be signed or hold a key."""
    if "://" not in source or urlsplit(source).hostname in CIVITAI_HOSTS:  # of these no secret was stored
        return source
    return urlunsplit((*urlsplit(source)[:3], "", ""))


def first_name(source: Source) -> str:
    """What to call it until its real name is known."""
    match source:
        case HubSource():
            return PurePosixPath(source.path or source.repo).name
        case CivitaiSource():
            return f"Civitai {source.version or source.model}"
        case UrlSource():
            return unquote(PurePosixPath(urlsplit(source.url).path).name) or urlsplit(source.url).netloc
        case PathSource():
            return source.path.name


def _address(text: str, rules: Rules) -> Source:
    try:
        parts = urlsplit(text)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError as error:
        raise BadSource(f"This address cannot be read. {HELP}") from error
    if parts.scheme == "file":
        if host not in ("", "localhost"):
            raise BadSource("A path on another computer is not opened. Mount it as a drive or folder first.")
        return _path(Path(url2pathname(parts.path)))
    if parts.scheme not in ("https", "http") or not host:
        raise BadSource(HELP)
    if parts.username or parts.password:
        raise BadSource("Leave name and password out of the address: it is written down. Add a token under Models.")
    place = f"{host}:{port}" if port else host
    if (path := _below(place, parts.path, rules.huggingface, HUB_HOSTS)) is not None:
        return _hub_address(unquote(path))
    if (path := _below(place, parts.path, rules.civitai, CIVITAI_HOSTS)) is not None:
        return _civitai_address(path, parse_qsl(parts.query), host if host in SISTERS else "")
    return UrlSource(urlunsplit(parts._replace(fragment="")))


def _below(place: str, path: str, base: str, hosts: frozenset[str]) -> str | None:
    """The path on one of the site's own hosts or below its configured address; None for an address elsewhere."""
    configured = urlsplit(base.rstrip("/"))
    if place == configured.netloc.lower() and path.startswith(f"{configured.path}/"):
        return path.removeprefix(configured.path)
    return path if place in hosts else None


def _hub_address(path: str) -> HubSource:
    """/owner/name, /owner/name/tree/main, /owner/name/blob/main/a.safetensors, also with resolve for blob."""
    segments = [segment for segment in path.split("/") if segment]
    if len(segments) < 2 or segments[0] in NOT_MODELS:
        raise BadSource("This page of Hugging Face is not a model. Open the model's page and copy its address.")
    repo = _repo("/".join(segments[:2]))
    if len(segments) >= 4 and segments[2] in ("blob", "resolve", "tree"):
        file = "/".join(segments[4:])
        if file and segments[2] == "tree":
            raise BadSource(f"This is a folder. Name a file in it, as in {repo}:{file}/model.safetensors.")
        return HubSource(repo, file, segments[3])
    return HubSource(repo)


def _civitai_address(path: str, query: list[tuple[str, str]], site: str) -> CivitaiSource:
    """/models/123/its-name?modelVersionId=456, /api/download/models/456, /model-versions/456"""
    numbers = {name: int(value) for name, value in query if value.isdecimal() and len(value) < 19}
    wishes = tuple((name, value) for name, value in query if name in ("type", "format", "size", "fp"))
    if match := re.match(r"/(?:api/download/models|api/v1/model-versions|model-versions)/(\d{1,18})", path):
        return CivitaiSource(None, int(match[1]), wishes, site)
    if match := re.match(r"/(?:api/v1/)?models/(\d{1,18})", path):
        return CivitaiSource(int(match[1]), numbers.get("modelVersionId"), wishes, site)
    raise BadSource("This page of Civitai is not a model. Open the model's page and copy its address.")


def _hub_name(text: str) -> HubSource:
    """owner/name, owner/name:file, owner/name/path/file, each with @revision after the name."""
    head, _, file = text.partition(":")
    segments = head.split("/")
    if len(segments) < 2 or (file and len(segments) > 2):
        raise BadSource(HELP)
    name, _, revision = segments[1].partition("@")
    path = (file or "/".join(segments[2:])).strip("/")
    if path and not path.lower().endswith(SUFFIXES):
        raise BadSource(f"{PurePosixPath(path).name} is no model file. They end in {', '.join(SUFFIXES)}.")
    return HubSource(_repo(f"{segments[0]}/{name}"), path, revision or "main")


def _repo(text: str) -> str:
    if not REPO.fullmatch(text):
        raise BadSource(f"{text!r} is no name on {HUGGING_FACE.partition('://')[2]}. {HELP}")
    return text


def _path(path: Path) -> PathSource:
    try:
        path = path.expanduser()
    except RuntimeError as error:
        raise BadSource(HELP) from error
    if not path.is_absolute():
        raise BadSource("Give the full path, from the root or drive on.")
    return PathSource(path)
