"""Models from elsewhere: Hugging Face, Civitai, any https address, a path. Resumable, checked, and never on trust."""

from webui.downloads.delivery import Hooks
from webui.downloads.queue import Downloads
from webui.downloads.tokens import Tokens
from webui.downloads.types import DownloadInfo, DownloadState, Rules

__all__ = ["DownloadInfo", "DownloadState", "Downloads", "Hooks", "Rules", "Tokens"]
