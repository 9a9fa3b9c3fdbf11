"""Downloads as a process: the real command, the real client, a hub that is a server of ours."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

import mlxmtp
from mlxmtp.decode.compile import Rounds
from tests.golden import FAMILIES, load_golden
from tests.hub.conftest import Home
from tests.hub.models_to_publish import publish_family, publish_large

SLOW = 30_000  # bytes per second: all of them take 13 s


def wait_for_bytes(home: Home, repo: str, count: int) -> Path:
    """The partial file of `repo`, as soon as it has `count` bytes."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for path in home.cached(repo).folder.glob("blobs/*.incomplete"):
            with suppress(FileNotFoundError):  # a small one, which has its name by now
                if path.stat().st_size >= count:
                    return path
        time.sleep(0.02)
    raise AssertionError("nothing arrived")


def rest_served(home: Home) -> tuple[str | None, int]:
    """What was asked for of the weights last, and how many bytes went out for it."""
    last = [item for item in home.hub.served if item.path.endswith("model.safetensors") and "/cdn/" in item.path][-1]
    return last.range, last.sent


@pytest.mark.few(2)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_pulled_and_answers_like_the_original(
    home: Home, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = publish_family(home.hub, family)
    code, out, err = home.run("pull", repo)
    assert (code, out) == (0, f'{repo} is ready. Ask it something: mlxmtp ask -m {repo} "Hello"\n'), err
    for word in (f"target   {repo} @ ", f"drafter  {repo}-assistant @ ", "free in", "with a context of 4k: fits"):
        assert word in err
    assert not [item for item in home.hub.served if "onnx" in item.path or "README" in item.path or ".bin" in item.path]
    for name, value in home.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Rounds, "build", lambda *_: None)  # no kernels are built behind this test
    model, golden = mlxmtp.load(repo), load_golden(family)
    assert model.drafter == f"{repo}-assistant"
    record = golden.records["short"]
    said = [t for r in model.rounds(record.prompt, max_tokens=len(record.greedy), stop=[]) for t in r.tokens]
    assert said == record.greedy


def test_after_kill_9_only_the_rest_is_fetched(home: Home) -> None:
    weights = publish_large(home.hub)
    slowly = home.hub.fail("model.safetensors", rate=SLOW, times=None)  # also after a time-out of a busy machine
    with home.start("pull", "org/large") as process:
        partial = wait_for_bytes(home, "org/large", 60_000)
        process.kill()
    slowly.times = 0
    kept = partial.stat().st_size
    assert 60_000 <= kept < len(weights)
    assert not list(home.cached("org/large").folder.glob("snapshots/*/model.safetensors"))
    code, _, err = home.run("pull", "org/large")
    assert code == 0, err
    assert " kB are here)" in err
    assert rest_served(home) == (f"bytes={kept}-", len(weights) - kept)
    (file,) = home.cached("org/large").folder.glob("snapshots/*/model.safetensors")
    assert file.read_bytes() == weights
    assert not list(home.cached("org/large").folder.glob("blobs/*.incomplete"))


def test_ctrl_c_keeps_what_arrived_and_says_so(home: Home) -> None:
    publish_large(home.hub)
    home.hub.fail("model.safetensors", rate=SLOW, times=None)
    with home.start("pull", "org/large") as process:
        partial = wait_for_bytes(home, "org/large", 30_000)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "The same command goes on from here" in err
    assert "Traceback" not in err
    assert partial.stat().st_size >= 30_000
    code, out, _ = home.run("ls")
    assert (code, "org/large" in out) == (0, False)


def test_a_full_disk_keeps_what_arrived(home: Home) -> None:
    weights = publish_large(home.hub)
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
    run = "from mlxmtp.cli.app import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", limit + run, "pull", "org/large"],
        env=home.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "The disk is full" in done.stderr
    assert "HF_HOME" in done.stderr
    assert home.run("pull", "org/large")[0] == 0
    assert rest_served(home) == ("bytes=100000-", len(weights) - 100_000)


def test_two_pulls_do_not_write_one_file(home: Home) -> None:
    publish_large(home.hub)
    slowly = home.hub.fail("model.safetensors", rate=SLOW // 20, times=None)  # longer than the other pull takes
    with home.start("pull", "org/large") as process:
        wait_for_bytes(home, "org/large", 1)
        code, _, err = home.run("pull", "org/large")
        slowly.rate = None
        assert process.wait(timeout=120) == 0
        process.communicate()
    assert code == 1
    assert "Another process is downloading" in err


def test_on_a_terminal_it_asks_first_and_no_means_no(home: Home) -> None:
    import pexpect

    publish_family(home.hub, "e2b")
    command = ["-m", "mlxmtp", "pull", "org/e2b"]
    for answer, code in (("n", 1), ("", 0)):
        child = pexpect.spawn(sys.executable, command, env=home.environment(TERM="xterm"), timeout=120)
        child.expect("Download .*B?")
        child.sendline(answer)
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == code
        assert home.cached("org/e2b").folder.exists() == (code == 0)


@pytest.mark.parametrize("key", ["\x03", "\x04"])
def test_after_ctrl_c_and_ctrl_d_at_the_question_the_shells_prompt_has_a_row_of_its_own(home: Home, key: str) -> None:
    import pexpect

    publish_family(home.hub, "e2b")
    command = ["-m", "mlxmtp", "pull", "org/e2b"]
    child = pexpect.spawn(sys.executable, command, env=home.environment(TERM="xterm"), timeout=120)
    child.expect("Download .*: ")
    child.send(key)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130
    assert b"\n" in child.before


def test_ask_downloads_what_it_misses_if_told_so_and_nothing_else(home: Home) -> None:
    """Nobody to ask: exit 3 and not a byte. With --yes the pair arrives, and the question goes on from there."""
    repo = publish_family(home.hub, "e2b")
    code, out, err = home.run("ask", "-m", repo, "Hi")
    assert (code, out) == (3, "")
    assert err == f"Error: Model '{repo}' is not on this machine. Run: mlxmtp pull {repo}\n"
    assert not home.hub.served
    code, out, err = home.run("ask", "--yes", "-m", repo, "Hi")
    assert (code, out) == (1, "")
    assert "knows token" in err  # the golden's vocabulary is smaller than the tokenizer that it was published with
    assert home.cached(repo).folder.is_dir()
    assert home.cached(f"{repo}-assistant").folder.is_dir()
