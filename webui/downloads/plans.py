"""A parsed source -> the files to fetch: asks the hub, Civitai, the server or this machine's disk."""

import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from webui.downloads import civitai, hub
from webui.downloads.folders import SUFFIXES, safe_name, safe_path
from webui.downloads.sources import CivitaiSource, HubSource, PathSource, Source, UrlSource
from webui.downloads.types import BadSource, Mode, Plan, Rules, Wanted
from webui.downloads.web import Web

FILE_NAME = re.compile(r"""filename\*?=(?:UTF-8'[^']*')?"?([^";]+)""", re.IGNORECASE)


async def make_plan(web: Web, rules: Rules, source: Source, mode: Mode) -> Plan:
    """Raises BadSource, DownloadFailed, TryLater, OSError."""
    match source:
        case HubSource():
            return await hub.plan(web, rules.huggingface.rstrip("/"), source)
        case CivitaiSource():
            base = f"https://{source.site}" if source.site else rules.civitai.rstrip("/")
            return await civitai.plan(web, base, source)
        case UrlSource():
            return await _from_url(web, source.url)
        case PathSource():
            return from_path(source.path, mode)


def renamed(plan: Plan, name: str | None, sha256: str | None) -> Plan:
    """With the user's own wishes."""
    if sha256 and (plan.folder or plan.link):
        raise BadSource("A SHA-256 belongs to a single file that is fetched. Leave it out.")
    if name:
        name = safe_name(name)
        suffix = "" if plan.folder else PurePosixPath(plan.name).suffix
        name = name if name.lower().endswith(suffix.lower()) else f"{name}{suffix}"
        plan = plan.model_copy(update={"name": name})
    if plan.folder or plan.link:
        return plan
    file = plan.files[0]
    if sha256 and file.sha256 and sha256 != file.sha256:
        raise BadSource(f"The source lists SHA-256 {file.sha256}, not the one that was given: this is another file.")
    file = file.model_copy(update={"path": plan.name, "sha256": file.sha256 or sha256})
    return plan.model_copy(update={"files": (file,)})


def from_path(path: Path, mode: Mode) -> Plan:
    """A file or a diffusers folder on this machine. Raises BadSource; OSError."""
    if path.is_dir():
        return _from_folder(path, mode)
    if not path.is_file():
        raise BadSource(f"There is no file {path} on this computer.")
    name = safe_name(path.name)
    _check_suffix(name)
    if mode == "copy":
        wanted = Wanted(url=path.as_uri(), path=name, size=path.stat().st_size)
        return Plan(name=name, files=(wanted,))
    return Plan(name=name, link=str(path))


def _from_folder(path: Path, mode: Mode) -> Plan:
    if not (path / hub.INDEX).is_file():
        raise BadSource(f"{path} is no model in diffusers' layout: it has no {hub.INDEX}. Give one of its files.")
    name = safe_name(path.name)
    if mode != "copy":
        return Plan(name=name, folder=True, link=str(path))
    found = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    found.sort(key=lambda file: file.name == hub.INDEX)  # last: with it the folder is a model
    files = tuple(
        Wanted(url=file.as_uri(), path=safe_path(file.relative_to(path).as_posix()), size=file.stat().st_size)
        for file in found
    )
    return Plan(name=name, folder=True, files=files)


async def _from_url(web: Web, url: str) -> Plan:
    """The name is in the address, else the server is asked for it."""
    name = unquote(PurePosixPath(urlsplit(url).path).name)
    if not name.lower().endswith(SUFFIXES):
        async with web.open(url) as response:
            match = FILE_NAME.search(response.headers.get("content-disposition", ""))
            name = unquote(match[1].strip()) if match else unquote(PurePosixPath(response.url.path).name)
    name = safe_name(PurePosixPath(name.replace("\\", "/")).name or "unnamed")
    _check_suffix(name)
    return Plan(name=name, files=(Wanted(url=url, path=name),))


def _check_suffix(name: str) -> None:
    if not name.lower().endswith(SUFFIXES):
        raise BadSource(
            f"{name} is no model file: they end in {', '.join(SUFFIXES)}. Give the address of the file itself."
        )
