"""A hub of our own, a home folder of its own, and the program: as a process, or in this one where that is enough."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub import constants

from mlxmtp.cli.app import main
from mlxmtp.hub.cache import CachedRepo
from mlxmtp.hub.store import Store
from mlxmtp.settings import Loaded, load_settings
from tests.hub.hub_server import Hub

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Home:
    """Folders of one user, and the hub that user talks to."""

    folder: Path
    hub: Hub

    @property
    def cache(self) -> Path:
        return self.folder / "hf" / "hub"

    def cached(self, repo: str) -> CachedRepo:
        return CachedRepo.of(self.cache, repo)

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "LC_ALL")}
        own = {"HOME": str(self.folder), "MLXMTP_HOME": str(self.folder / "mlxmtp"), "HF_HOME": str(self.folder / "hf")}
        hub = {"HF_ENDPOINT": self.hub.url, "HF_HUB_DOWNLOAD_TIMEOUT": "30"}
        return {**kept, **own, **hub, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", **more}

    def start(self, *args: str, **more: str) -> subprocess.Popen[str]:
        """The program as a process, with pipes."""
        return subprocess.Popen(
            [sys.executable, "-m", "mlxmtp", *args],
            env=self.environment(**more),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *args: str, **more: str) -> tuple[int, str, str]:
        """Run the program to the end: exit code, stdout, stderr."""
        with self.start(*args, **more) as process:
            out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def settings(self) -> Loaded:
        return load_settings({}, self.environment())

    def store(self) -> Store:
        return Store(self.settings().places)


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    yield server
    server.close()


@pytest.fixture
def home(tmp_path: Path, hub: Hub) -> Home:
    return Home(tmp_path, hub)


@dataclass(frozen=True)
class Here(Home):
    """The same, with the program in this process: the client's settings are patched, not read from the environment."""

    capsys: pytest.CaptureFixture[str]

    def call(self, *args: str) -> tuple[int, str, str]:
        code = main(args)
        shown = self.capsys.readouterr()
        return code, shown.out, shown.err


@pytest.fixture
def here(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    made = Here(tmp_path, hub, capsys)
    for name, value in made.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + template[template.index("/{") :])
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "tokens"))
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 30)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("mlxmtp.hub.client.WAITS", (0.01,) * 5)
    return made
