"""Where a setting comes from: default < settings.toml < INKSTONE_* < flag."""

from pathlib import Path

import pytest

from webui import config


def test_each_source_beats_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ["--data-dir", str(tmp_path)]
    assert config.load(data).port == 7860
    (tmp_path / "settings.toml").write_text('port = 1\nimage_format = "webp"\n')
    assert config.load(data).port == 1
    monkeypatch.setenv("INKSTONE_PORT", "2")
    assert config.load(data).port == 2
    assert config.load([*data, "--port", "3"]).port == 3
    assert config.load([*data, "--port", "3"]).image_format == "webp"


def test_every_flag_of_the_readme(tmp_path: Path) -> None:
    flags = "--host 0.0.0.0 --port 0 --models-dir m --device cpu --no-browser --log-level debug"
    settings = config.load([*flags.split(), "--data-dir", str(tmp_path)])
    assert settings.no_browser
    assert settings.outputs == tmp_path / "outputs"
    assert (settings.host, settings.device, settings.log_level) == ("0.0.0.0", "cpu", "debug")


@pytest.mark.parametrize(
    ("flags", "toml", "sentence"),
    [
        (["--port", "many"], "", "port"),
        (["--image-format", "gif"], "", "'png', 'jpeg' or 'webp'"),
        ([], "prot = 1", "prot"),
        ([], "port =", "settings.toml cannot be read"),
    ],
)
def test_what_does_not_fit_is_said(flags: list[str], toml: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(toml)
    with pytest.raises(SystemExit, match=sentence):
        config.load([*flags, "--data-dir", str(tmp_path)])
