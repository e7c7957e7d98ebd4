"""Names of models: where each leads, and what is said when it leads nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvtrove.config import ConfigError
from kvtrove.demo import demo_model_dir
from kvtrove.names import cached_repositories, display_name, find_model

REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """A cache folder as huggingface_hub writes it, with one repository of two revisions."""
    folder = tmp_path / "hub" / f"models--{REPOSITORY.replace('/', '--')}"
    for commit in ("aaa", "bbb"):
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "snapshots" / commit / "config.json").write_text("{}")
    (folder / "snapshots" / "bbb" / "smol-Q4_K_M.gguf").write_text("")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("bbb")
    return {"HF_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}


def test_demo_is_the_embedded_model() -> None:
    assert find_model("demo") == demo_model_dir()
    assert display_name("demo") == display_name(demo_model_dir()) == "demo"


def test_a_path_is_itself(tmp_path: Path) -> None:
    assert find_model(tmp_path) == tmp_path
    (tmp_path / "smol.gguf").write_text("")
    assert display_name(tmp_path / "smol.gguf") == "smol"


def test_a_path_that_is_misspelt_names_its_neighbour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "folder").mkdir(parents=True)
    (tmp_path / "models" / "folder" / "config.json").write_text("{}")
    (tmp_path / "models" / "smol.gguf").write_text("")
    monkeypatch.chdir(tmp_path)
    for name, meant in {
        tmp_path / "models" / "smoll.gguf": "smol.gguf",
        "models/smol.guf": "smol.gguf",  # which could be ORG/NAME as well
        "models/foldre": "folder",
    }.items():
        with pytest.raises(ConfigError, match=rf"no such folder.* \(did you mean '{meant}'\?\)"):
            find_model(name, {})


@pytest.mark.parametrize(
    ("name", "end"),
    [
        (REPOSITORY, "bbb"),
        (f"{REPOSITORY}@aaa", "aaa"),
        (f"{REPOSITORY}:q4_k_m", "bbb/smol-Q4_K_M.gguf"),
        ("smollm2", "bbb"),
        ("SmolLM2", "bbb"),
    ],
)
def test_a_repository_is_found_in_the_cache(name: str, end: str, home: dict[str, str]) -> None:
    assert str(find_model(name, home)).endswith(f"snapshots/{end}")


def test_a_folder_of_a_similar_name_does_not_hide_the_cache(
    home: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = tmp_path / f"{REPOSITORY}-2"
    beside.mkdir(parents=True)
    (beside / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert str(find_model(REPOSITORY, home)).endswith("snapshots/bbb")


def test_own_short_names(home: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "config" / "kvtrove"
    folder.mkdir(parents=True)
    (folder / "models.toml").write_text(f'mine = "{tmp_path}"\n')
    assert find_model("mine", home) == tmp_path
    (folder / "models.toml").write_text("mine = ")
    with pytest.raises(ConfigError, match=r"models\.toml"):
        find_model("mine", home)


def test_the_cache_lists_its_repositories(home: dict[str, str]) -> None:
    assert cached_repositories(home) == [REPOSITORY]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Qwen/Qwen3-4B", "`kvtrove pull Qwen/Qwen3-4B` or `hf download Qwen/Qwen3-4B` puts it there"),
        ("qwen3", "`kvtrove pull Qwen/Qwen3-0.6B`"),
        ("./nowhere", "./nowhere: there is no such folder"),
        ("/no/where.gguf", "and no .gguf file"),
        ("smolm2", r"did you mean 'smollm2'\?.*known names are demo, "),
        (f"{REPOSITORY}:Q8_0", "none of its files has 'Q8_0' in its name: smol-Q4_K_M.gguf"),
        (f"{REPOSITORY}@ccc", "is not in the Hugging Face cache"),
    ],
)
def test_what_is_not_there(name: str, words: str, home: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=words):
        find_model(name, home)
