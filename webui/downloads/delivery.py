"""One run of one download: from what was typed to a checked model in its folder."""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import BadModel
from pipelines.types import Kind
from webui.downloads.fetch import Reports, Transfer
from webui.downloads.folders import FreeBytes, as_named, check_room, discard, folder_of, free_bytes, link, place, taken
from webui.downloads.guard import Resolve, ask_dns
from webui.downloads.meter import Meter
from webui.downloads.plans import from_path, make_plan, renamed
from webui.downloads.sources import parse
from webui.downloads.store import DownloadStore
from webui.downloads.types import CLAIMING, BadSource, Download, DownloadFailed, Plan, Rules, Wanted, file_of
from webui.downloads.web import Patience, Web


@dataclass(frozen=True)
class Hooks:
    """What the rest of Inkstone does for downloads. `identify` and `on_done` are called in threads."""

    identify: Callable[[Path], Kind]
    """What a file or diffusers folder is, from its header. Raises BadModel for one that cannot be read."""

    on_done: Callable[[Path], None]
    """A model lies at this path: look for it. The download counts as done when this returns."""

    on_change: Callable[[], None] = lambda: None
    """Something is new in `snapshot()`; at most some times a second."""

    free_bytes: FreeBytes = free_bytes
    resolve: Resolve = ask_dns


@dataclass(frozen=True)
class Kit:
    """What every run needs."""

    models_dir: Path
    web: Web
    rules: Rules
    store: DownloadStore
    hooks: Hooks


class Delivery:
    def __init__(self, kit: Kit, download: Download, meter: Meter, changed: Callable[[], None]) -> None:
        self._kit, self._download, self._meter, self._changed = kit, download, meter, changed

    async def run(self) -> Path:
        """Where the model lies now. Raises PipelineError, OSError."""
        plan, target = await self._plan()
        if await asyncio.to_thread(is_there, plan, target):
            self._meter.take(self._meter.total or self._meter.received, self._meter.total)
            return target
        if plan.link:
            return await self._link(plan, Path(plan.link))
        part = await self._fetch(plan, target)
        return await self._deliver(plan, part)

    async def _plan(self) -> tuple[Plan, Path]:
        """What to fetch and where to, decided once."""
        download = self._download
        if download.plan and download.target:
            return download.plan, file_of(self._kit.models_dir, download.target)
        source = parse(download.source, self._kit.rules)
        patience = Patience(self._kit.rules, self._say)
        self._say("Asking what there is to fetch.")
        plan = await patience.insist(lambda: make_plan(self._kit.web, self._kit.rules, source, download.mode))
        if plan.link and Path(plan.link).resolve().is_relative_to(self._kit.models_dir.resolve()):
            raise BadSource(f"{plan.link} lies in the models folder already.")
        plan = renamed(plan, download.asked_name, download.asked_sha256)
        return plan, self._settle(plan, download.kind or plan.kind)

    def _settle(self, plan: Plan, kind: Kind | None) -> Path:
        """Claim the place in the models folder and write it down."""
        target = f"{folder_of(kind)}/{plan.name}"
        for other in self._kit.store.unfinished():
            same = (other.target or "").casefold() == target.casefold()
            if same and other.id != self._download.id and other.state in CLAIMING:
                raise DownloadFailed(f"{target} is being fetched already, by download {other.id}.")
        self._kit.store.set_plan(self._download.id, plan, kind, target)
        self._download = self._download.model_copy(update={"plan": plan, "kind": kind, "target": target})
        if plan.total is not None and not plan.link:
            self._meter.total = plan.total
        self._say("")
        return file_of(self._kit.models_dir, target)

    async def _fetch(self, plan: Plan, target: Path) -> Path:
        """All files, one after another; the finished part: a file, or a folder of them."""
        part = target.with_name(f"{target.name}.part")
        paths = {file: file_of(part, file.path) if plan.folder else target for file in plan.files}
        if plan.folder:
            part.mkdir(parents=True, exist_ok=True)
        lying = {file: size_of(path, plan.folder) for file, path in paths.items()}
        if plan.total is not None:
            self._check_room(part, plan.total - sum(lying.values()))
        for file, path in paths.items():
            if plan.folder and path.exists():
                continue
            lying[file] = 0
            before = sum(lying.values())
            unfinished = path.with_name(f"{path.name}.part")
            reports = self._reports(file, unfinished, before, plan)
            transfer = Transfer(self._kit.web, self._kit.rules, file, unfinished, reports)
            sha256 = await transfer.run(self._download.validators.get(file.path, ""))
            if plan.folder:
                await asyncio.to_thread(place, unfinished, path)
                lying[file] = path.stat().st_size
            else:
                self._remember_sum(plan, file, sha256)
        return part

    def _reports(self, file: Wanted, path: Path, before: int, plan: Plan) -> Reports:
        def received(size: int, total: int | None) -> None:
            self._meter.take(before + size, plan.total if plan.folder else total)
            self._changed()

        def validator(value: str) -> None:
            self._kit.store.set_validator(self._download.id, file.path, value)

        return Reports(received, self._say, validator, lambda needed: self._check_room(path, needed))

    async def _deliver(self, plan: Plan, part: Path) -> Path:
        """Look whether it is a model, then give it its name."""
        self._say("Checking the file.")
        name = (self._download.target or plan.name).rpartition("/")[2]
        try:
            found = await asyncio.to_thread(self._identify, part, name)
        except BadModel as error:
            await asyncio.to_thread(discard, part)
            raise DownloadFailed(f"What came is no model that can be read, so it was deleted. {error}") from error
        target = self._known_as(found)
        if not await asyncio.to_thread(is_there, self._download.plan or plan, target):
            await asyncio.to_thread(place, part, target)
        return target

    async def _link(self, plan: Plan, original: Path) -> Path:
        found = await asyncio.to_thread(self._kit.hooks.identify, original)
        if found == Kind.BROKEN:
            raise BadModel(f"{original} is no model that can be read.")
        target = self._known_as(found)
        if await asyncio.to_thread(link, original, target, self._download.mode):
            if original.is_file():
                size = original.stat().st_size
                self._meter.take(size, size)
            return target
        if self._download.mode == "link":
            raise DownloadFailed(f"The disk of {target.parent} cannot hold a link to {original}. Choose to copy it.")
        plan = renamed(from_path(original, "copy"), self._download.asked_name, None)
        part = await self._fetch(plan, self._settle(plan, self._download.kind))
        return await self._deliver(plan, part)

    def _identify(self, part: Path, name: str) -> Kind:
        with as_named(part, name) as named:
            kind = self._kit.hooks.identify(named)
        if kind == Kind.BROKEN:
            raise BadModel("Its header makes no sense.")
        return kind

    def _known_as(self, found: Kind) -> Path:
        """The place of what nobody had named; what the user or the source said holds."""
        plan = self._download.plan
        if self._download.kind is None and plan and folder_of(found) != folder_of(None):
            return self._settle(plan, found)
        return file_of(self._kit.models_dir, self._download.target or "")

    def _remember_sum(self, plan: Plan, file: Wanted, sha256: str) -> None:
        """So that a start after a crash sees that the file in place is the one that was fetched."""
        known = plan.model_copy(update={"files": (file.model_copy(update={"sha256": sha256}),)})
        self._kit.store.set_plan(self._download.id, known, self._download.kind, self._download.target)
        self._download = self._download.model_copy(update={"plan": known})

    def _check_room(self, path: Path, needed: int) -> None:
        check_room(path.parent, max(needed, 0), self._kit.rules.margin_bytes, self._kit.hooks.free_bytes)

    def _say(self, message: str) -> None:
        self._meter.message = message
        self._changed()


def is_there(plan: Plan, target: Path) -> bool:
    """The same model lies in its place already. Raises DownloadFailed if something else does. Reads whole files."""
    if not target.exists():
        return False
    if plan.link:
        same = target.samefile(plan.link)
    elif plan.folder:
        same = target.is_dir() and all(_is_same(file, file_of(target, file.path)) for file in plan.files)
    else:
        same = plan.files[0].sha256 is not None and _is_same(plan.files[0], target)
    if not same:
        raise taken(target)
    return True


def _is_same(file: Wanted, path: Path) -> bool:
    if not path.is_file() or file.size not in (None, path.stat().st_size):
        return False
    if file.sha256 is None:
        return True
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256


def size_of(path: Path, finished_counts: bool) -> int:
    """Bytes of a file, finished or not, that lie on the disk already."""
    if finished_counts and path.is_file():
        return path.stat().st_size
    part = path.with_name(f"{path.name}.part")
    return part.stat().st_size if part.is_file() else 0
