"""Extensions change requests, and break alone."""

import logging
from pathlib import Path

import pytest

from extensions import loader
from pipelines.errors import PipelineError
from pipelines.request import GenerationRequest

HOOK = "from extensions import PipelineError, hookimpl\n\n@hookimpl\ndef prepare_request(request):\n"


def add(folder: Path, name: str, code: str) -> None:
    (folder / name).mkdir()
    (folder / name / "plugin.py").write_text(code)


def test_wildcards_follow_the_seed(tmp_path: Path) -> None:
    plugins = loader.load(tmp_path)
    request = GenerationRequest(prompt="a {red|green|blue} hat", seed=3)
    first = loader.prepare(plugins, request).prompt
    assert first in ("a red hat", "a green hat", "a blue hat")
    assert loader.prepare(plugins, request).prompt == first
    others = {loader.prepare(plugins, request.model_copy(update={"seed": seed})).prompt for seed in range(30)}
    assert len(others) == 3


def test_an_extension_of_a_user_is_asked_in_turn(tmp_path: Path) -> None:
    add(tmp_path, "shout", HOOK + "    return request.model_copy(update={'prompt': request.prompt.upper()})")
    add(tmp_path, "silent", HOOK.replace("request):", "):") + "    return None")  # pluggy lets it leave out arguments
    assert loader.prepare(loader.load(tmp_path), GenerationRequest(prompt="a")).prompt == "A"


@pytest.mark.parametrize(
    "code",
    [
        "raise SystemError('at import')",
        "raise SystemExit('at import')",
        "not python",
        HOOK + "    raise KeyError('in the hook')",
        HOOK + "    return 5",
        HOOK + "    return request.model_copy(update={'steps': -1})",
    ],
)
def test_a_broken_extension_breaks_alone(code: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add(tmp_path, "broken", code)
    request = GenerationRequest(prompt="a {b|b}", seed=1)
    assert loader.prepare(loader.load(tmp_path), request).prompt == "a b", "the others still work"
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert "broken" in errors[0].getMessage()


def test_an_extension_may_refuse_a_request(tmp_path: Path) -> None:
    add(tmp_path, "strict", HOOK + "    raise PipelineError('No.')")
    with pytest.raises(PipelineError, match=r"No\."):
        loader.prepare(loader.load(tmp_path), GenerationRequest())
