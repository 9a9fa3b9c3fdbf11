"""What can go wrong between the hub and the disk, each with one sentence and its exit code."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from mlxmtp.app.models import Catalog, NoDownload
from mlxmtp.files import try_lock, write_atomically
from mlxmtp.hub import download
from mlxmtp.hub.client import LONGEST_WAIT
from tests.golden import FOLDER
from tests.hub.conftest import Here
from tests.hub.hub_server import blob_id, folder_files, sha256
from tests.hub.models_to_publish import publish_family, publish_large, target_files, text_side

WEIGHTS = "model.safetensors"


def error_of(err: str) -> str:
    """The one line that says why."""
    lines = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


@pytest.mark.parametrize(
    ("fault", "extra"),
    [
        ({"drop_at": 100_000}, 0),
        ({"drop_at": 0, "times": 3}, 0),
        ({"stall_at": 70_000}, 0),
        ({"status": 503, "headers": {"Retry-After": "0"}, "times": 2}, 0),
        ({"status": 429, "headers": {"Retry-After": "0"}, "times": 4}, 0),
        ({"status": 500}, 0),
    ],
)
def test_a_fault_that_passes_is_survived_and_nothing_is_fetched_twice(
    here: Here, fault: dict, extra: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "stall_at" in fault:
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    weights = publish_large(here.hub)
    here.hub.fail(WEIGHTS, **fault)
    code, _, err = here.call("pull", "org/large")
    assert code == 0, err
    # A connection that is cut may take along what was on its way.
    assert len(weights) <= here.hub.bytes_of(WEIGHTS) <= len(weights) + 70_000
    (file,) = here.cached("org/large").folder.glob(f"snapshots/*/{WEIGHTS}")
    assert file.read_bytes() == weights


def test_a_server_without_ranges_sends_everything_again(here: Here) -> None:
    weights = publish_large(here.hub)
    here.hub.fail(WEIGHTS, drop_at=100_000)
    here.hub.fail(WEIGHTS, ignore_range=True)
    assert here.call("pull", "org/large")[0] == 0
    assert here.cached("org/large").blob(sha256(weights)).read_bytes() == weights


@pytest.mark.parametrize("ignore_range", [False, True])
def test_a_connection_that_keeps_breaking_ends_with_a_sentence_and_can_be_continued(
    here: Here, ignore_range: bool
) -> None:
    weights = publish_large(here.hub)
    fault = here.hub.fail(WEIGHTS, drop_at=100_000, times=None, ignore_range=ignore_range)
    code, _, err = here.call("pull", "org/large")
    assert code == 1
    assert "broke down several times" in error_of(err)
    assert "run the same command again" in err
    fault.times = 0
    assert here.call("pull", "org/large")[0] == 0
    assert here.cached("org/large").blob(sha256(weights)).read_bytes() == weights


def test_a_hub_that_asks_for_too_long_a_wait_is_not_waited_for(here: Here) -> None:
    publish_large(here.hub)
    here.hub.fail("/api/models", status=429, headers={"Retry-After": str(int(LONGEST_WAIT) + 1)}, times=None)
    code, _, err = here.call("pull", "org/large")
    assert code == 1
    assert "limits requests" in error_of(err)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9", "pip install socksio"),
        ("ALL_PROXY", "socks://127.0.0.1:9", "variables of proxies"),
        ("SSL_CERT_FILE", "/no/such/file", "SSL_CERT_FILE"),
        ("HF_ENDPOINT", "https://host:80a", "HF_ENDPOINT"),
    ],
)
def test_an_environment_that_allows_no_request_is_a_sentence(
    here: Here, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv(name, value)
    if name == "HF_ENDPOINT":
        monkeypatch.setattr(constants, "ENDPOINT", value)
    close_session()
    try:
        code, _, err = here.call("pull", "org/large")
        assert code == 1
        assert "cannot be asked" in error_of(err)
        assert said in err
        checks = {check["what"]: check for check in json.loads(here.call("doctor", "--json")[1])["checks"]}
        assert checks["hub"]["verdict"] == "note"
        assert "models" in checks
    finally:
        close_session()


def test_redirects_in_a_circle_are_a_sentence(here: Here) -> None:
    here.hub.fail("/api/models", status=302, headers={"Location": "/api/models/org/large"}, times=None)
    code, _, err = here.call("pull", "org/large")
    assert code == 1
    assert "does not answer like the Hugging Face hub" in error_of(err)


def test_a_damaged_file_is_never_seen_as_a_model(here: Here) -> None:
    publish_large(here.hub)
    here.hub.fail("/cdn/", flip_at=200_000)
    code, _, err = here.call("pull", "org/large")
    assert code == 1
    assert "arrived damaged" in error_of(err)
    assert not list(here.cached("org/large").folder.glob(f"snapshots/*/{WEIGHTS}"))
    assert here.call("pull", "org/large")[0] == 0


def test_a_damaged_small_file_is_noticed_too(here: Here) -> None:
    publish_family(here.hub, "e2b")
    here.hub.fail("tokenizer.json", flip_at=10)
    code, _, err = here.call("pull", "org/e2b")
    assert code == 1
    assert "tokenizer.json of org/e2b arrived damaged" in error_of(err)


def test_a_damaged_beginning_is_fetched_anew(here: Here) -> None:
    weights = publish_large(here.hub)
    partial = here.cached("org/large").partial(sha256(weights))
    partial.parent.mkdir(parents=True)
    partial.write_bytes(bytes(50_000))
    assert here.call("pull", "org/large")[0] == 0
    assert here.cached("org/large").blob(sha256(weights)).read_bytes() == weights
    assert here.hub.bytes_of(WEIGHTS) == 2 * len(weights) - 50_000


def leave(here: Here, weights: bytes, name: str, count: int) -> Path:
    """Write the first bytes of the weights under a name that huggingface_hub gives to what it fetches."""
    leftover = here.cached("org/large").blob(f"{sha256(weights)}.{name}.incomplete")
    leftover.parent.mkdir(parents=True, exist_ok=True)
    leftover.write_bytes(weights[:count])
    return leftover


def test_what_the_stock_client_left_is_gone_on_with_and_cleared_away(here: Here) -> None:
    weights = publish_large(here.hub)
    left = [leave(here, weights, name, count) for name, count in (("0a1b2c3d", 50_000), ("ffffffff", 90_000))]
    assert here.call("pull", "org/large")[0] == 0
    assert here.cached("org/large").blob(sha256(weights)).read_bytes() == weights
    assert here.hub.bytes_of(WEIGHTS) == len(weights) - 90_000
    assert not any(map(Path.exists, left))


def test_what_the_stock_client_works_on_is_left_alone(here: Here) -> None:
    weights = publish_large(here.hub)
    leftover = leave(here, weights, "0a1b2c3d", 50_000)
    lock = here.cache / ".locks" / "models--org--large" / f"{sha256(weights)}.lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as held:
        assert try_lock(held.fileno())
        assert here.call("pull", "org/large")[0] == 0
    assert leftover.exists()
    assert here.hub.bytes_of(WEIGHTS) == len(weights)


def test_a_file_that_rotted_on_this_disk_is_fetched_again(here: Here) -> None:
    weights = publish_large(here.hub)
    assert here.call("pull", "org/large")[0] == 0
    blob = here.cached("org/large").blob(sha256(weights))
    blob.write_bytes(bytes(len(weights)))
    assert here.call("pull", "org/large")[0] == 0
    assert blob.read_bytes() == weights


def test_a_changed_file_in_the_place_of_a_link_is_replaced_and_a_copy_stays(here: Here) -> None:
    """`sed -i` makes the one, a stock client on a disk without links the other."""
    publish_family(here.hub, "e2b")
    assert here.call("pull", "org/e2b")[0] == 0
    cached = here.cached("org/e2b")
    file = cached.snapshot(cached.commits()[0]) / "config.json"
    content, names = file.read_bytes(), sorted(one.name for one in file.parent.iterdir())
    for changed in (content + b"\n", content):
        file.unlink()
        file.write_bytes(changed)
        assert here.call("pull", "org/e2b")[0] == 0
        assert file.read_bytes() == content
        assert file.is_symlink() == (changed != content)
    assert sorted(one.name for one in file.parent.iterdir()) == names


def test_a_file_that_another_pull_finishes_at_this_moment_is_taken(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening the partial file and locking it: what is locked then is the finished one."""
    weights, claim = publish_large(here.hub), try_lock

    def finished(descriptor: int) -> bool:
        path = here.cached("org/large").partial(sha256(weights))
        if path.exists():
            path.write_bytes(weights)
            path.replace(path.with_suffix(""))
        return claim(descriptor)

    monkeypatch.setattr(download, "try_lock", finished)
    code, _, err = here.call("pull", "org/large")
    assert code == 0, err
    assert here.cached("org/large").blob(sha256(weights)).read_bytes() == weights
    assert here.hub.bytes_of(WEIGHTS) == 0


def test_what_is_here_is_checked_and_not_fetched(here: Here) -> None:
    publish_family(here.hub, "26b")
    assert here.call("pull", "org/26b")[0] == 0
    before = len(here.hub.served)
    code, out, err = here.call("pull", "org/26b")
    assert (code, "org/26b is ready" in out) == (0, True)
    assert "download 0 B" in err
    assert all(item.path.startswith("/api/models/") for item in here.hub.served[before:])


@pytest.mark.parametrize(
    ("access", "token", "code", "sentence"),
    [
        ({"gated": True}, None, 1, "org/e2b is gated. Ask for access at "),
        ({"private": True}, None, 3, "There is no org/e2b on the hub, or it is private."),
        ({}, "hf_bad", 1, "The hub refuses the token."),
        ({"gated": True}, "hf_good", 0, ""),
        ({"private": True}, "hf_good", 0, ""),
    ],
)
def test_access(
    here: Here, monkeypatch: pytest.MonkeyPatch, access: dict, token: str | None, code: int, sentence: str
) -> None:
    here.hub.publish("org/e2b", target_files("e2b"), **access)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    got, _, err = here.call("pull", "org/e2b", "--no-draft")
    assert got == code, err
    assert {item.token for item in here.hub.served if not item.path.startswith("/cdn/")} == {token}
    assert {item.token for item in here.hub.served if item.path.startswith("/cdn/")} <= {None}
    if sentence:
        assert sentence in error_of(err)
        assert not here.cached("org/e2b").folder.exists()


def test_requests_tell_what_asks_and_not_what_runs_it(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's own headers name the program around it, after looking it up."""
    publish_family(here.hub, "e2b")
    for name in ("CLAUDECODE", "AI_AGENT", "CURSOR_TRACE_ID"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    assert here.call("pull", "org/e2b")[0] == 0
    agents = {item.agent for item in here.hub.served}
    assert len(agents) == 1
    assert re.fullmatch(r"mlxmtp/\S+; hf_hub/[\d.]+\S*", agents.pop() or "")


def test_a_forbidden_repository(here: Here) -> None:
    publish_family(here.hub, "e2b")
    here.hub.fail("/api/models/org/e2b", status=403, times=None)
    code, _, err = here.call("pull", "org/e2b")
    assert (code, "The token may not read org/e2b" in error_of(err)) == (1, True)


def test_a_status_that_no_standard_has_is_a_sentence(here: Here) -> None:
    publish_family(here.hub, "e2b")
    here.hub.fail("/api/models/org/e2b", status=520, times=None)
    code, _, err = here.call("pull", "org/e2b")
    assert (code, "The hub answers 520 for org/e2b" in error_of(err)) == (1, True)


@pytest.mark.parametrize("name", ["org/none", "e2b"])
def test_a_repository_that_does_not_exist(here: Here, name: str) -> None:
    code, _, err = here.call("pull", name)
    assert (code, "There is no " in error_of(err)) == (3, True)


def test_a_revision_that_does_not_exist(here: Here) -> None:
    publish_family(here.hub, "e2b")
    code, _, err = here.call("pull", "org/e2b", "--revision", "v9")
    assert (code, "org/e2b has no revision 'v9'" in error_of(err)) == (3, True)


def test_offline_nothing_is_asked(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_family(here.hub, "e2b")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, _, err = here.call("pull", "org/e2b")
    assert (code, "HF_HUB_OFFLINE is set" in error_of(err)) == (1, True)
    assert not here.hub.served
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert here.call("pull", "org/e2b")[0] == 0
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, _, err = here.call("pull", "org/e2b")
    assert (code, "is on this machine" in err) == (0, True)
    code, _, err = here.call("pull", "org/e2b", "--revision", "v9")
    assert (code, "so org/e2b@v9 cannot be downloaded" in error_of(err)) == (1, True)
    commit = here.store().resolve("org/e2b").folder.name
    assert here.call("pull", "org/e2b", "--revision", commit)[0] == 0


def test_a_cache_that_cannot_be_written_and_has_everything_will_do(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_family(here.hub, "e2b")
    assert here.call("pull", "org/e2b")[0] == 0
    written: list[Path] = []

    def refuse(path: Path, content: str, **how: bool) -> None:
        if here.cache in path.parents:
            written.append(path)
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        write_atomically(path, content, **how)

    monkeypatch.setattr("mlxmtp.hub.cache.write_atomically", refuse)
    assert here.call("pull", "org/e2b")[0] == 0
    assert not written
    newer = here.hub.publish("org/e2b", target_files("e2b") | {"README.md": b"new"})
    assert here.call("pull", "org/e2b")[0] == 0
    assert written
    assert here.store().resolve("org/e2b").folder.name == newer


def test_a_file_that_was_cut_off_in_the_cache_is_missing(here: Here) -> None:
    weights = publish_large(here.hub)
    assert here.call("pull", "org/large")[0] == 0
    here.cached("org/large").blob(sha256(weights)).write_bytes(weights[:1])
    plan = Catalog(here.settings()).plan_download("org/large")
    assert not isinstance(plan, NoDownload)
    assert plan.missing == len(weights)


def test_a_hub_that_is_not_there(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    code, _, err = here.call("pull", "org/e2b")
    assert (code, "The hub at http://127.0.0.1:9 cannot be reached" in error_of(err)) == (1, True)


def test_something_that_is_no_hub(here: Here) -> None:
    here.hub.fail("/api/models", status=200, times=None)
    code, _, err = here.call("pull", "org/e2b")
    assert (code, "does not answer like the Hugging Face hub" in error_of(err)) == (1, True)


def test_a_disk_that_is_too_small_is_noticed_before(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_family(here.hub, "e2b")
    monkeypatch.setattr("mlxmtp.hub.download.free_bytes", lambda _: 100_000)
    code, _, err = here.call("pull", "org/e2b")
    assert code == 1
    assert "org/e2b needs 340 kB more on disk; 100 kB are free" in error_of(err)
    assert not here.cached("org/e2b").folder.exists()


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"README.md": b"x"}, "has no config.json"),
        ({"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}, "org/odd holds an adapter (LoRA) without"),
        ({"model-Q4_K_M.gguf": b"x"}, "org/odd holds weights as GGUF files"),
        (
            {"config.json": (FOLDER / "e2b" / "target" / "config.json").read_bytes(), "pytorch_model.bin": b"x"},
            "org/odd holds weights as PyTorch files",
        ),
        ({"config.json": b'{"model_type": "llama"}', WEIGHTS: b"x"}, "org/odd holds a 'llama' model"),
        ({"config.json": b"{", WEIGHTS: b"x"}, "config.json of org/odd cannot be read"),
        (
            {"config.json": (FOLDER / "e2b" / "target" / "config.json").read_bytes()},
            "org/odd holds no model.safetensors",
        ),
        (
            {
                "config.json": (FOLDER / "e2b" / "target" / "config.json").read_bytes(),
                "model.safetensors.index.json": b'{"weight_map": {"a": "model-1.safetensors"}}',
            },
            "model-1.safetensors of org/odd is missing although the index names it",
        ),
    ],
)
def test_what_is_no_model_is_refused_before_anything_is_fetched(here: Here, files: dict, sentence: str) -> None:
    here.hub.publish("org/odd", {**files, **text_side()})
    code, _, err = here.call("pull", "org/odd")
    assert (code, sentence in error_of(err)) == (1, True), err
    assert not here.cached("org/odd").folder.exists()


def test_the_server_names_contents_as_git_and_the_hub_do() -> None:
    files = folder_files(FOLDER / "e2b" / "drafter")
    assert blob_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object
    assert len(sha256(files[WEIGHTS])) == 64
