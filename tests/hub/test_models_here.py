"""What is on this machine after a pull: names, pinned commits, drafters, lists, and what a removal frees."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from huggingface_hub import constants, snapshot_download
from huggingface_hub.utils._shared_blobs import publish_blob_to_shared_store

from mlxmtp.app import open as open_
from mlxmtp.app.models import Catalog
from mlxmtp.cli.obtain import offer
from mlxmtp.cli.terminal.output import Output
from mlxmtp.errors import ModelNotFound
from mlxmtp.hub.cache import Records
from mlxmtp.hub.registry import Entry, Repo
from mlxmtp.hub.store import Store
from mlxmtp.machine.chip import this_machine
from mlxmtp.settings import Loaded, Settings
from tests.golden import FOLDER
from tests.hub.conftest import Here
from tests.hub.hub_server import folder_files, sha256
from tests.hub.models_to_publish import publish_family, publish_large, target_files


def bytes_below(folder: Path) -> int:
    return sum(item.lstat().st_size for item in folder.rglob("*") if item.is_file() and not item.is_symlink())


def test_the_commit_is_pinned_until_the_next_pull(here: Here) -> None:
    repo = publish_family(here.hub, "e2b")
    assert here.call("pull", repo)[0] == 0
    first = here.store().resolve(repo).folder
    record = Records(here.settings().places.data).find(repo)
    assert record is not None
    assert (record.commit, record.revision, record.drafter) == (first.name, None, f"{repo}-assistant")
    files = target_files("e2b")
    newer = here.hub.publish(repo, {**files, "generation_config.json": b'{"temperature": 0.5}'})
    here.cached(repo).set_main(newer)  # another tool looked, and has not downloaded
    assert here.store().resolve(repo).folder == first
    fault = here.hub.fail("generation_config.json", status=500, times=None)
    assert here.call("pull", repo)[0] == 1
    assert here.store().resolve(repo).folder == first
    fault.times = 0
    before = here.hub.bytes_of("model.safetensors")
    assert here.call("pull", repo)[0] == 0
    assert here.store().resolve(repo).folder.name == newer
    assert here.hub.bytes_of("model.safetensors") == before  # the weights did not change


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("generation_config.json", f'{{"eos_token_id": {"[" * 600}1{"]" * 600}}}'),
        ("generation_config.json", f'{{"eos_token_id": "{"1" * 5000}", "temperature": 0.5}}'),
        ("config.json", f'"per_layer_config": {{"{"1" * 5000}": {{"head_dim": 64}}}}'),
    ],
    ids=["nested", "long text", "long key"],
)
def test_a_model_with_numbers_that_are_none_does_not_hide_the_others(here: Here, file: str, text: str) -> None:
    for name in ("odd", "plain"):
        folder = here.folder / "mlxmtp" / "models" / name
        folder.mkdir(parents=True)
        for path, content in target_files("e2b").items():
            (folder / path).write_bytes(content)
    target = here.folder / "mlxmtp" / "models" / "odd" / file
    before = target.read_text() if file == "config.json" else ""
    target.write_text(before.replace('"text_config": {', f'"text_config": {{{text},') or text)
    assert text in target.read_text()
    code, out, err = here.call("ls", "-q")
    assert (code, "Traceback" in err) == (0, False), err
    assert {"odd", "plain"} <= {*out.splitlines()}
    code, _, err = here.call("show", "odd")
    assert code in (0, 1), err
    assert "Traceback" not in err


def test_a_revision_is_recorded_and_main_is_left_alone(here: Here) -> None:
    repo = publish_family(here.hub, "e2b")
    old = here.hub.publish(repo, {**target_files("e2b"), "README.md": b"old"}, branch="v1")
    code, _, err = here.call("pull", repo, "--revision", "v1")
    assert code == 0
    assert f"@ {old[:8]}" in err
    assert here.store().resolve(repo).folder.name == old
    assert here.cached(repo).ref() is None


def test_without_a_drafter(here: Here) -> None:
    repo = publish_family(here.hub, "e2b")
    assert here.call("pull", repo, "--no-draft")[0] == 0
    assert not here.cached(f"{repo}-assistant").folder.exists()
    assert here.store().drafter_for(here.store().resolve(repo), None) is None
    del here.hub.repos[f"{repo}-assistant"]
    code, _, err = here.call("pull", repo)
    assert code == 0
    assert "No drafter for org/e2b was found" in err


def test_a_drafter_of_another_model_is_not_taken(here: Here) -> None:
    repo = publish_family(here.hub, "e2b")
    here.hub.publish(f"{repo}-assistant", FOLDER / "31b" / "drafter")
    code, _, err = here.call("pull", repo)
    assert (code, "No drafter" in err) == (0, True)
    assert not here.cached(f"{repo}-assistant").folder.exists()


def test_a_copied_cache_has_its_drafter_where_that_fits(here: Here) -> None:
    repo = publish_family(here.hub, "e2b")
    for name in (repo, f"{repo}-assistant"):
        snapshot_download(name, cache_dir=here.cache, endpoint=here.hub.url)
    folder = here.store().resolve(repo).folder
    for name in (repo, str(folder), str(here.cached(repo).folder)):
        paired = here.store().drafter_for(here.store().resolve(name), None)
        assert paired is not None
        assert paired.name == f"{repo}-assistant"
    drafter = here.store().resolve(f"{repo}-assistant").folder
    shutil.copy(FOLDER / "31b" / "drafter" / "config.json", drafter / "other")
    (drafter / "other").replace(drafter / "config.json")
    assert here.store().drafter_for(here.store().resolve(repo), None) is None


def test_other_tools_see_what_was_pulled(here: Here) -> None:
    repo = publish_family(here.hub, "26b")
    assert here.call("pull", repo)[0] == 0
    folder = here.store().resolve(repo).folder
    assert snapshot_download(repo, cache_dir=here.cache, local_files_only=True) == str(folder)
    assert all(item.is_symlink() for item in folder.iterdir())


def test_the_stock_client_downloads_from_this_server(here: Here) -> None:
    repo = publish_family(here.hub, "26b")
    folder = Path(snapshot_download(repo, cache_dir=here.folder / "stock", endpoint=here.hub.url))
    wanted = folder_files(FOLDER / "26b" / "target")
    assert {name: (folder / name).read_bytes() for name in wanted} == wanted


def test_what_the_stock_client_downloaded_is_not_fetched_again(here: Here) -> None:
    repo = publish_family(here.hub, "e2b")
    snapshot_download(repo, cache_dir=here.cache, endpoint=here.hub.url)
    before = here.hub.bytes_of("model.safetensors")
    assert here.call("pull", repo, "--no-draft")[0] == 0
    assert here.hub.bytes_of("model.safetensors") == before


def test_lists(here: Here) -> None:
    repo = publish_family(here.hub, "e2b")
    assert here.call("pull", repo)[0] == 0
    code, out, err = here.call("ls")
    assert code == 0
    header, *rows = [line.split("\t") for line in out.splitlines()]
    assert header == ["NAME", "PARAMS", "QUANT", "SIZE", "DRAFTER", "MODIFIED"]
    assert [f"{repo}*", "115k", "bf16", "340 kB", "bf16", "just now"] in rows
    assert " on disk" in err
    assert here.call("ls", "-q")[1].splitlines()[-1] == repo
    assert here.call("list", "-q")[1] == here.call("ls", "-q")[1]
    table = json.loads(here.call("ls", "--json", "--all")[1])
    named = {row["name"]: row for row in table["models"]}
    assert named[repo]["installed"]
    assert named["31b:bf16"]["installed"] is False
    assert named["31b"]["memory"] > 17e9
    assert set(named[repo]) == set(named["31b"])
    _, out, _ = here.call("ls", "--all")
    assert next(line for line in out.splitlines() if line.startswith("e2b\t")).split("\t")[3] == "3.8 GB"


def test_the_model_that_answers_has_the_star_whatever_it_is_called(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = publish_family(here.hub, "e2b")
    assert here.call("pull", repo)[0] == 0
    (here.folder / "mlxmtp" / "config.toml").write_text(f'model = "mine"\n[aliases]\nmine = "{repo}"\n')
    folder = str(here.store().resolve(repo).folder)
    for name, starred in (("mine", repo), (folder, repo), ("pocket", "pocket"), ("org/none", None)):
        if name != "mine":
            monkeypatch.setenv("MLXMTP_MODEL", name)
        stars = [line.split("*")[0] for line in here.call("ls")[1].splitlines() if "*\t" in line]
        rows = json.loads(here.call("ls", "--json", "--all")[1])["models"]
        assert stars == [row["name"] for row in rows if row["default"]] == ([starred] if starred else []), name


def test_a_model_without_a_short_name_answers_where_there_is_no_other(here: Here) -> None:
    repo = publish_family(here.hub, "e2b")
    assert here.call("pull", repo)[0] == 0
    assert Catalog(here.settings()).default_name() == repo
    told: list[str] = []
    assert open_.Opener(here.settings(), told.append).target(None) == here.store().resolve(repo)
    assert not told


def test_show(here: Here) -> None:
    repo = publish_family(here.hub, "e2b")
    assert here.call("pull", repo)[0] == 0
    sheet = json.loads(here.call("show", repo, "--json")[1])
    assert (sheet["repo"], sheet["pinned"], sheet["context"]) == (repo, True, 512)
    assert sheet["revision"] == here.store().resolve(repo).folder.name
    modules = {row["kind"]: row for row in sheet["modules"]}
    assert modules["per-layer embedding"]["parameters"] == 128 * 160
    assert sum(row["parameters"] for row in sheet["modules"]) >= sheet["parameters"]
    assert sheet["drafter"]["name"] == f"{repo}-assistant"
    code, out, _ = here.call("show", repo)
    assert code == 0
    assert "(pinned)" in out
    assert "MODULES\tPARAMS\tSTORED AS\tSIZE" in out
    assert here.call("show", "org/none")[0] == 3


def test_a_removal_frees_what_it_says(here: Here) -> None:
    repo = publish_family(here.hub, "e2b")
    assert here.call("pull", repo)[0] == 0
    publish_large(here.hub, "org/other")
    assert here.call("pull", "org/other")[0] == 0
    assert here.call("rm", repo)[0] == 2  # nobody to ask
    before = bytes_below(here.cache)
    code, out, err = here.call("rm", "-y", repo)
    assert code == 0
    freed = before - bytes_below(here.cache)
    assert out == f"{freed / 1e3:.0f} kB freed.\n"
    assert f"{repo}-assistant" in err
    assert here.call("show", repo)[0] == 3
    assert here.call("ls", "-q")[1].splitlines()[-1] == "org/other"
    assert here.call("rm", "-y", repo)[0] == 3
    assert here.call("rm", "-y", "pocket")[0] == 2


def test_a_removal_keeps_a_drafter_that_another_model_uses(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("org/one", "org/two"):
        here.hub.publish(name, target_files("e2b"))
    here.hub.publish("org/drafter", FOLDER / "e2b" / "drafter")
    drafter = Repo("org/drafter", None)
    known = [Entry(name, "One", Repo(f"org/{name}", None), drafter, "e2b", "4bit", 2) for name in ("one", "two")]
    found = lambda name: next((e for e in known if name in (e.name, e.target.repo)), None)  # noqa: E731
    for place in ("app.models", "hub.download", "hub.store", "hub.inventory"):
        monkeypatch.setattr(f"mlxmtp.{place}.find_entry", found)
    for name in ("one", "two"):
        assert here.call("pull", name)[0] == 0
    code, _, err = here.call("rm", "-y", "one")
    assert code == 0
    assert "org/drafter, another model uses it" in err
    assert here.cached("org/drafter").folder.exists()
    assert here.store().resolve("two").folder.is_dir()
    assert here.call("rm", "-y", "two")[0] == 0
    assert not here.cached("org/drafter").folder.exists()


def test_a_removal_leaves_contents_that_the_client_shares_between_repositories(here: Here) -> None:
    weights = publish_large(here.hub, "org/one")
    publish_large(here.hub, "org/two")
    for repo in ("org/one", "org/two"):
        assert here.call("pull", repo)[0] == 0
        # What the client does with a file it got over Xet: the blob becomes a link to a store beside the repositories.
        assert publish_blob_to_shared_store(
            blob_path=str(here.cached(repo).blob(sha256(weights))),
            xet_hash="a" * 64,
            cache_dir=str(here.cache),
            expected_size=len(weights),
            replace_existing=False,
        )
    assert here.cached("org/one").blob(sha256(weights)).is_symlink()
    for repo, most in (("org/one", 20_000), ("org/two", 20_000 + len(weights))):
        before = bytes_below(here.cache)
        code, out, _ = here.call("rm", "-y", repo)
        freed = before - bytes_below(here.cache)
        assert code == 0
        assert most - 12_000 < freed <= most
        assert abs(float(out.split()[0]) * 1000 - freed) < 1500
        if repo == "org/one":
            (file,) = here.cached("org/two").folder.glob("snapshots/*/model.safetensors")
            assert file.read_bytes() == weights


def test_a_removal_follows_links_to_another_disk(here: Here) -> None:
    repo = publish_family(here.hub, "e2b")
    assert here.call("pull", repo, "--no-draft")[0] == 0
    made = here.settings().places.data / "models" / "mine"
    made.mkdir(parents=True)
    for name, content in target_files("e2b").items():
        (made / name).write_bytes(content)
    for name, folder in ((repo, here.cached(repo).folder), ("mine", made)):
        elsewhere = folder.rename(here.folder / f"{folder.name}-elsewhere")
        folder.symlink_to(elsewhere)
        code, _, err = here.call("rm", "-y", name)
        assert code == 0, err
        assert not elsewhere.exists()
        assert not folder.is_symlink()


def test_a_folder_with_the_name_of_an_alias_is_not_what_is_removed(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    (here.folder / "work" / "e2b").mkdir(parents=True)
    monkeypatch.chdir(here.folder / "work")
    target = "mlx-community/gemma-4-e2b-it-4bit"
    here.hub.publish(target, target_files("e2b"))
    assert here.call("pull", "e2b", "--no-draft")[0] == 0
    code, _, err = here.call("rm", "-y", "e2b")
    assert (code, here.cached(target).folder.exists()) == (0, False), err
    code, _, err = here.call("rm", "-y", "./e2b")
    assert (code, "is a folder of yours" in err) == (2, True)


@pytest.mark.parametrize("name", ["", " "])
def test_no_name_removes_nothing(here: Here, name: str) -> None:
    made = here.settings().places.data / "models" / "mine"
    made.mkdir(parents=True)
    (made / "config.json").write_text("{}")
    code, _, err = here.call("rm", "-y", name)
    assert (code, "Error: Name the model to remove" in err) == (2, True)
    assert (made / "config.json").is_file()


def test_a_half_finished_download_can_be_removed(here: Here) -> None:
    publish_large(here.hub)
    here.hub.fail("model.safetensors", drop_at=100_000, times=None)
    assert here.call("pull", "org/large")[0] == 1
    assert "Unfinished: org/large" in here.call("ls")[2]
    code, out, _ = here.call("rm", "-y", "org/large")
    assert (code, out) == (0, "112 kB freed.\n")


def test_a_model_made_here_has_its_name(here: Here) -> None:
    made = here.settings().places.data / "models" / "mine"
    made.mkdir(parents=True)
    for name, content in target_files("e2b").items():
        (made / name).write_bytes(content)
    assert here.call("ls", "-q")[1].splitlines()[-1] == "mine"
    assert here.store().resolve("mine").folder == made
    assert here.call("rm", "-y", "mine")[0] == 0
    assert not made.exists()


@pytest.mark.parametrize("command", ["ls", "show"])
def test_looking_costs_no_heavy_import(here: Here, command: str) -> None:
    code = "import sys; from mlxmtp.cli.app import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    arguments = [command, "pocket"] if command == "show" else [command]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=here.environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    heavy = {"huggingface_hub", "httpx2", "mlx", "mlx_lm", "rich", "prompt_toolkit"}
    assert not loaded & (heavy | {"tokenizers", "jinja2"} if command == "ls" else heavy)


@pytest.mark.parametrize("name", ["org/e2b", "mine"])
def test_an_offer_downloads_where_the_answer_is_yes(here: Here, name: str) -> None:
    publish_family(here.hub, "e2b")
    missing = ModelNotFound("not here")
    places = here.settings().places
    out = Output(None, StringIO())
    aliases = {"mine": "org/e2b"}
    with pytest.raises(ModelNotFound) as raised:  # nobody to ask
        offer(Loaded(Settings(), places, aliases), out, name, missing)
    assert raised.value is missing
    assert not here.hub.served
    offer(Loaded(Settings(yes=True), places, aliases), out, name, missing)
    assert Store(places, aliases).resolve(name).folder.is_dir()
    for wrong in ("e9b", "./folder"):
        with pytest.raises(ModelNotFound):
            offer(Loaded(Settings(yes=True), places), out, wrong, missing)


def test_doctor(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_family(here.hub, "e2b")
    assert here.call("pull", "org/e2b")[0] == 0
    progress: list[str] = []
    monkeypatch.setattr(Output, "progress", lambda _, text: progress.append(text))
    code, out, _ = here.call("doctor", "--json")
    assert progress.count("looking") > 1
    report = json.loads(out)
    checks = {check["what"]: check for check in report["checks"]}
    assert code == (0 if report["sound"] else 1)
    assert {"chip", "system", "memory", "mlx", "versions", "disk", "hub", "model org/e2b"} <= set(checks)
    assert (checks["hub"]["verdict"], checks["mlx"]["verdict"]) == ("ok", "ok")
    assert all(check["advice"] for check in report["checks"] if check["verdict"] != "ok")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    again = {check["what"]: check for check in json.loads(here.call("doctor", "--json")[1])["checks"]}
    assert again["hub"]["verdict"] == "note"


def test_ask_refuses_a_model_that_cannot_fit_unless_forced(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    real = this_machine()
    monkeypatch.setattr(open_, "this_machine", lambda: replace(real, usable=2_000_000))
    monkeypatch.setattr("sys.stdin", None)
    code, out, err = here.call("ask", "-m", "pocket", "Hi")
    assert (code, out) == (1, "")
    assert "Model 'pocket' needs " in err
    assert "pocket fits: take it with -m, or try anyway with --force." in err  # of 2 MB no model of the registry
    code, out, _ = here.call("ask", "-m", "pocket", "--max-tokens", "3", "--force", "Hi")
    assert code == 0
    assert out.strip()
