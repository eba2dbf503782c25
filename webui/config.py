"""Settings: defaults < settings.toml < INKSTONE_* variables < flags. Made once in app.py, then handed on."""

import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, CliSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.sources import TomlConfigSettingsSource

HOME = Path(__file__).resolve().parents[1]
"""The checkout: the shipped model lies here, and by default everything else too."""

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class Settings(BaseSettings):
    """Inkstone: pictures with Stable Diffusion, on your own machine. Flags are also INKSTONE_* and settings.toml."""

    model_config = SettingsConfigDict(
        env_prefix="INKSTONE_",
        frozen=True,
        extra="forbid",
        cli_prog_name="app.py",
        cli_kebab_case=True,
        cli_implicit_flags="toggle",
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=7860, ge=0, le=65535, description="port to listen on")
    data_dir: Path = Field(default=HOME, description="where outputs/, the database and settings.toml live")
    models_dir: Path = Field(default=HOME / "models", description="where checkpoints lie")
    more_models: tuple[Path, ...] = Field(default=(), description="further folders: of A1111, Forge, ComfyUI, InvokeAI")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1 or mps")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="number format of the networks; auto: what is fast on this machine"
    )
    storage: Literal["auto", "full", "fp8", "nf4"] = Field(default="auto", description="format of weights in memory")
    placement: Literal["auto", "full", "offload", "stream"] = Field(
        default="auto", description="where weights lie: on the device, part by part, or layer by layer"
    )
    attention: str = Field(default="auto", description="auto, sdpa, xformers, flash, sage or sliced")
    vram_gb: float = Field(default=0, ge=0, description="use at most so much of the device; 0: all that is free")
    cache_gb: float = Field(default=-1, ge=-1, description="RAM for recently used models; -1: a share of what is free")
    hf_mirror: str = Field(default="https://huggingface.co", description="where Hugging Face ids are fetched from")
    no_browser: bool = Field(default=False, description="do not open a browser window")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="how much to log")
    allowed_hosts: tuple[str, ...] = Field(default=(), description="further host names by which browsers may call us")
    image_format: Literal["png", "jpeg", "webp"] = Field(default="png", description="file format of pictures")
    image_quality: int = Field(default=92, ge=1, le=100, description="of JPEG and WebP")

    download_hosts: tuple[str, ...] = Field(
        default=(), description="hosts of your own network that models may be fetched from, as nas.local:8080"
    )

    @property
    def outputs(self) -> Path:
        return self.data_dir.resolve() / "outputs"

    @property
    def database(self) -> Path:
        return self.outputs / "library.sqlite"

    @property
    def cache(self) -> Path:
        """Thumbnails and the like: may be deleted at any time."""
        return self.outputs / ".cache"

    @property
    def inputs(self) -> Path:
        """Pictures that jobs start from or follow."""
        return self.outputs / ".inputs"

    @property
    def extensions(self) -> Path:
        return HOME / "extensions"

    @property
    def hosts(self) -> tuple[str, ...]:
        return (*LOOPBACK, self.host, *self.allowed_hosts)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings


def load(arguments: list[str] | None = None) -> Settings:
    """Read the command line and all the rest. Raises SystemExit with a sentence for the user."""
    flags: CliSettingsSource[Settings] = CliSettingsSource(Settings)
    flags = flags(args=sys.argv[1:] if arguments is None else arguments)
    try:
        first = Settings(**flags())  # settings.toml lies in the data folder, which a flag may name
        path = first.data_dir / "settings.toml"
        merged: dict[str, Any] = {
            **TomlConfigSettingsSource(Settings, path)(),
            **first.model_dump(include=first.model_fields_set),
        }
        return Settings(**merged)
    except ValidationError as error:
        raise SystemExit("\n".join(_sentence(detail) for detail in error.errors())) from error
    except ValueError as error:  # tomllib: not TOML
        raise SystemExit(f"settings.toml cannot be read: {error}") from error


def _sentence(detail: Any) -> str:
    name = ".".join(str(part) for part in detail["loc"])
    return f"Setting {name}: {detail['msg']} (given: {detail.get('input')!r})."
