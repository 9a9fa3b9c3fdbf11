"""Names as people have them, and refusals before the first large byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from mlxmtp.app.open import load, read_tokenizer
from mlxmtp.errors import LoadError, ModelNotFound
from mlxmtp.hub.inventory import describe, unusable
from mlxmtp.hub.registry import plain_name, split_revision
from tests.golden import FOLDER
from tests.hub.conftest import Here
from tests.hub.hub_server import folder_files
from tests.hub.models_to_publish import publish_family, text_side

WEIGHTS = "model.safetensors"


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("https://huggingface.co/org/Repo-1", "org/Repo-1"),
        ("http://hf.co/org/repo/", "org/repo"),
        ("huggingface.co/org/repo?library=mlx#files", "org/repo"),
        ("https://huggingface.co/org/repo/tree/main", "org/repo"),
        ("https://huggingface.co/org/repo/tree/v1.0", "org/repo@v1.0"),
        ("https://huggingface.co/org/repo/tree/refs/pr/7", "org/repo@refs/pr/7"),
        ("https://www.huggingface.co/org/repo/blob/v2/config.json", "org/repo@v2"),
        ("hf://org/repo@v3", "org/repo@v3"),
        (" org/repo ", "org/repo"),
        ("org/repo/", "org/repo"),
        ("org/repo@v1", "org/repo@v1"),
        ("./folder/", "./folder/"),
        ("~nobody-at-all/folder", "~nobody-at-all/folder"),
        ("/a/b/c", "/a/b/c"),
        ("e2b:8bit", "e2b:8bit"),
        (" Pocket", "pocket"),
    ],
)
def test_a_name_is_what_people_mean(name: str, plain: str) -> None:
    assert plain_name(name) == plain
    assert plain_name(plain) == plain


def test_a_revision_stands_behind_an_at_sign() -> None:
    assert split_revision("org/repo@refs/pr/7") == ("org/repo", "refs/pr/7")
    assert split_revision("org/repo") == ("org/repo", None)
    assert split_revision("/a@b/c") == ("/a@b/c", None)


@pytest.mark.parametrize("name", ["https://huggingface.co/org/e2b", "hf.co/org/e2b/tree/main", "org/e2b/", "ORG/E2B"])
def test_what_is_pulled_by_another_spelling_is_there_once_and_by_each(here: Here, name: str) -> None:
    publish_family(here.hub, "e2b")
    code, out, err = here.call("pull", name)
    assert code == 0, err
    assert "is ready" in out
    folder = here.store().resolve("org/e2b").folder
    assert here.store().resolve(name).folder == folder
    names = sorted(item.name for item in here.cache.glob("models--*"))
    assert names == ["models--org--e2b", "models--org--e2b-assistant"]
    served = here.hub.bytes_of(WEIGHTS)
    assert here.call("pull", "org/e2b")[0] == 0
    assert here.hub.bytes_of(WEIGHTS) == served


def test_a_renamed_repository_has_its_new_name_and_answers_to_the_old_one(here: Here) -> None:
    publish_family(here.hub, "e2b", "org/new")
    here.hub.renamed["org/old"] = "org/new"
    code, _, err = here.call("pull", "org/old")
    assert code == 0, err
    assert here.store().resolve("org/old").folder == here.store().resolve("org/new").folder
    assert not (here.cache / "models--org--old").exists()


@pytest.mark.parametrize(
    "name", ["x" * 256, "./" + "x" * 256, "org/" + "x" * 256, "o" * 200 + "/" + "x" * 200, "x" * 5000]
)
@pytest.mark.parametrize(
    "command", [("bench", "-m"), ("bench", "-m", "pocket", "--draft-model"), ("show",), ("rm", "-y"), ("pull",)]
)
def test_a_name_longer_than_that_of_any_file_is_that_of_no_model(here: Here, command: list[str], name: str) -> None:
    here.cache.mkdir(parents=True)
    code, out, err = here.call(*command, name)
    assert (code, out) == (3, ""), err
    assert name in err
    said = ("is not known", "is not on this machine", "There is no folder", "is not the name of a repository")
    assert any(one in err for one in said)


def test_a_revision_in_the_name_is_that_of_the_flag(here: Here) -> None:
    publish_family(here.hub, "e2b")
    commit = here.hub.publish("org/e2b", {**folder_files(FOLDER / "e2b" / "target"), **text_side()}, branch="v1.0")
    assert here.call("pull", "org/e2b@v1.0", "--no-draft")[0] == 0
    assert here.store().resolve("org/e2b@v1.0").folder.name == commit
    assert here.store().resolve(f"org/e2b@{commit[:8]}").folder.name == commit
    code, _, err = here.call("pull", "org/e2b@v1.0", "--revision", "v2")
    assert (code, "give one of them" in err) == (2, True)
    with pytest.raises(ModelNotFound, match="Run: mlxmtp pull org/e2b@v2"):
        here.store().resolve("org/e2b@v2")


def cached(here: Here, repo: str, commit: str) -> Path:
    folder = here.cached(repo).snapshot(commit)
    shutil.copytree(FOLDER / "e2b" / "target", folder)
    return folder


def test_a_cache_without_refs_or_with_one_to_a_part_is_used(here: Here) -> None:
    whole = cached(here, "org/norefs", "a" * 40)
    assert here.store().resolve("org/norefs").folder == whole
    assert here.store().resolve(str(here.cached("org/norefs").folder)).folder == whole
    part = here.cached("org/norefs").snapshot("b" * 40)
    part.mkdir()
    (part / "config.json").write_text("{}")
    here.cached("org/norefs").set_main("b" * 40)
    assert here.store().resolve("org/norefs").folder == whole
    assert here.store().resolve("ORG/NoRefs").folder == whole


@pytest.mark.parametrize("command", ["pull", "show", "convert"])
def test_an_empty_name_is_not_the_folder_one_is_in(here: Here, command: str) -> None:
    code, out, err = here.call(command, "")
    assert (code, out) == (3, "")
    assert err.startswith("Error: Give the name of a model: there are pocket, e2b, ")


def test_what_was_pulled_comes_before_a_folder_of_its_name(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here.folder)
    folder = here.folder / "org" / "e2b"
    folder.mkdir(parents=True)
    publish_family(here.hub, "e2b")
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        code, _, err = here.call("pull", "org/e2b")
        assert (code, "org/e2b cannot be downloaded" in err) == (1, True), "the folder is no download"
    code, out, err = here.call("pull", "org/e2b")
    assert (code, out) == (0, 'org/e2b is ready. Ask it something: mlxmtp ask -m org/e2b "Hello"\n'), err
    code, _, err = here.call("ask", "-m", "org/e2b", "--dry-run", "--no-stdin", "Hi")
    assert (code, err) == (0, "Note: org/e2b is the repository that was pulled; ./org/e2b names the folder.\n")
    code, _, err = here.call("ask", "-m", "./org/e2b", "--dry-run", "--no-stdin", "Hi")
    assert (code, "org/e2b holds no model" in err) == (1, True)
    assert here.call("rm", "-y", "org/e2b")[0] == 0
    assert folder.is_dir()
    code, _, err = here.call("rm", "-y", "org/e2b")
    assert (code, "org/e2b is a folder of yours" in err) == (2, True)


def test_a_folder_of_models_names_them(here: Here) -> None:
    whole = cached(here, "org/e2b", "a" * 40)
    for folder, inner in ((here.cache, whole.relative_to(here.cache)), (whole.parent, "a" * 40)):
        with pytest.raises(LoadError, match=rf"has no config.json. Give the folder of one model in it: {inner}\."):
            load(folder)
    with pytest.raises(ModelNotFound, match=r"github.com/org/e2b is not the page of a model on huggingface.co"):
        load("https://github.com/org/e2b")


def refused(here: Here, files: dict[str, bytes]) -> str:
    """The sentence of a pull that fetches nothing large, and is no model afterwards."""
    here.hub.publish("org/odd", files)
    code, out, err = here.call("pull", "org/odd")
    assert (code, out) == (1, "")
    assert here.hub.bytes_of(WEIGHTS) == 0
    with pytest.raises(ModelNotFound):
        here.store().resolve("org/odd")
    return err


def test_a_base_model_is_refused_before_its_weights_come(here: Here) -> None:
    files = {**folder_files(FOLDER / "e2b" / "target"), **text_side()}
    del files["chat_template.jinja"]
    assert "org/odd has no chat template, so it is a base model" in refused(here, files)
    del files["tokenizer.json"]
    assert "org/odd has no tokenizer.json" in refused(here, files)


def test_weights_that_cannot_be_used_are_refused_by_their_header(here: Here) -> None:
    files = {**folder_files(FOLDER / "e2b" / "target"), **text_side()}
    for old, new, sentence in (
        (b"layers.0.mlp.up_proj.weight", b"layers.0.mlp.up_proj.qweigh", "lacks tensor"),
        (b'"dtype":"BF16"', b'"dtype":"I16" ', "is stored as I16"),
    ):
        assert old in files[WEIGHTS]
        assert sentence in refused(here, {**files, WEIGHTS: files[WEIGHTS].replace(old, new)})


TEMPLATE, TOKENIZER = "chat_template.jinja", "tokenizer.json"
TEXT_FAULTS = {
    "unknown tag": ({TEMPLATE: b"{% unknown %}"}, "The chat template of {} cannot be read (Encountered unknown tag"),
    "not UTF-8": ({TEMPLATE: b"\xe9"}, "is no UTF-8"),
    "damaged": ({TOKENIZER: b"{}"}, "is damaged"),
    "a pointer": ({TOKENIZER: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"}, "a pointer of Git LFS"),
    "settings": ({"tokenizer_config.json": b"{"}, "cannot be read"),
    "values": ({"generation_config.json": b"["}, "cannot be read"),
    "nested": ({"generation_config.json": b"[" * 100_000}, "maximum recursion depth exceeded"),
}


@pytest.mark.parametrize("fault", TEXT_FAULTS)
def test_a_text_side_that_cannot_be_used_is_refused_everywhere(here: Here, fault: str, tmp_path: Path) -> None:
    """Before the first byte of weights; in one sentence, in which only the name of the place differs."""
    changed, said = TEXT_FAULTS[fault]
    files = {**folder_files(FOLDER / "e2b" / "target"), **text_side(), **changed}
    folder = tmp_path / "odd"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    error = refused(here, files)
    assert said.format("org/odd") in error
    assert "Download the model again" not in error
    with pytest.raises(LoadError) as loading:
        load(folder).stream([{"role": "user", "content": "Hello"}])
    assert said.format(folder) in str(loading.value)
    for command in ("show", "convert"):
        assert here.call(command, str(folder)) == (1, "", f"Error: {loading.value}\n")


def test_what_commands_and_the_api_say_of_one_folder_is_the_same(here: Here, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(FOLDER / "e2b" / "target", folder)
    for name, content in text_side().items():
        (folder / name).write_bytes(content)
    table = json.loads((folder / "config.json").read_text())
    table["text_config"]["head_dim"] = "wide"
    (folder / "config.json").write_text(json.dumps(table))
    with pytest.raises(LoadError, match="has head_dim 'wide'") as loading:
        load(folder)
    for command in ("show", "convert"):
        assert here.call(command, str(folder)) == (1, "", f"Error: {loading.value}\n")


def test_a_drafter_alone_is_here_and_not_ready(here: Here) -> None:
    publish_family(here.hub, "e2b")
    code, out, _ = here.call("pull", "org/e2b-assistant")
    assert (code, out) == (
        0,
        "org/e2b-assistant is here. org/e2b-assistant is a drafter: it answers nothing on its own. "
        "Give it as the draft model.\n",
    )
    with pytest.raises(LoadError, match="org/e2b-assistant is a drafter: it answers nothing on its own"):
        read_tokenizer(here.store().resolve("org/e2b-assistant"))


def test_a_model_that_cannot_answer_is_not_listed(here: Here) -> None:
    cached(here, "org/mute", "a" * 40)
    assert "org/mute" not in here.call("ls")[1]
    assert [name for name, sentence in unusable(here.store()) if "has no tokenizer" in sentence] == ["org/mute"]
    mute = here.store().resolve("org/mute")
    with pytest.raises(LoadError, match="has no tokenizer"):
        describe(here.store(), mute)


@pytest.mark.parametrize("asked", ["org/old", "org/new", "ORG/NEW"])
def test_a_removal_takes_every_name_of_a_repository(here: Here, asked: str) -> None:
    publish_family(here.hub, "e2b", "org/new")
    here.hub.renamed["org/old"] = "org/new"
    for name in ("org/old", "ORG/NEW"):
        assert here.call("pull", name)[0] == 0
    code, _, err = here.call("rm", "-y", asked)
    assert code == 0, err
    assert "another model uses it" not in err
    assert not list(here.cache.glob("models--*"))
    assert all(here.store().records.find(one) is None for one in ("org/old", "ORG/NEW", "org/new"))
    assert not list(here.store().places.data.glob("pulled/*"))


def test_a_removal_takes_the_drafter_that_is_paired_though_the_last_pull_left_it_out(here: Here) -> None:
    publish_family(here.hub, "e2b")
    assert here.call("pull", "org/e2b")[0] == 0
    assert here.call("pull", "org/e2b", "--no-draft")[0] == 0
    assert here.call("rm", "-y", "org/e2b")[0] == 0
    assert not list(here.cache.glob("models--*"))
