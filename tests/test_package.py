"""What people install: the wheel is built, put into an empty environment, and asked something away from here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from dataclasses import dataclass
from email.parser import Parser
from importlib.metadata import packages_distributions, requires
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
POCKET = ROOT / "assets" / "pocket"
MOST_BYTES = 40_000_000

pytestmark = pytest.mark.slow


@dataclass(frozen=True, slots=True)
class Environment:
    """An environment that holds the wheel and what it depends on, and a home folder that holds nothing."""

    folder: Path
    home: Path

    def run(self, program: str, *args: str) -> subprocess.CompletedProcess[str]:
        env = {"PATH": "/usr/bin:/bin", "HOME": str(self.home), "OPENBLAS_NUM_THREADS": "1"}
        command = [str(self.folder / "bin" / program), *args]
        return subprocess.run(
            command, env=env, cwd=self.home, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )

    def ask(self, *args: str) -> str:
        done = self.run("mlxmtp", "ask", "--model", "pocket", *args)
        assert done.returncode == 0, done.stderr
        return done.stdout


def call(*command: str | Path) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    # Through the source archive: that one has to be complete, too.
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel alone is installed; what it depends on is that of the tests, which takes a minute less."""
    folder = tmp_path_factory.mktemp("environment")
    call(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", python, "install"]
    uv: list[str | Path] = ["uv", "pip", "install", "--python", python]
    call(*(pip if find_spec("pip") else uv), "--no-deps", wheel)
    (inner,) = folder.glob("lib/python*/site-packages")
    (inner / "tests.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n{sysconfig.get_paths()['platlib']}\n")
    return Environment(folder, tmp_path_factory.mktemp("home"))


def test_the_wheel_holds_the_package_and_the_built_in_model(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        pocket = {f"mlxmtp/assets/pocket/{path.relative_to(POCKET).as_posix()}": path for path in files(POCKET)}
        assert {
            "mlxmtp/assets/pocket/target/model.safetensors",
            "mlxmtp/assets/pocket/drafter/model.safetensors",
        } <= set(pocket)
        assert all(archive.read(name) == path.read_bytes() for name, path in pocket.items())
        assert sum(path.stat().st_size for path in pocket.values()) <= MOST_BYTES
        code = {path.relative_to(ROOT).as_posix() for path in files(ROOT / "mlxmtp")}
        assert names == code | set(pocket)


def test_the_metadata_is_that_of_pyproject(wheel: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    with zipfile.ZipFile(wheel) as archive:
        info = f"mlxmtp-{project['version']}.dist-info"
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        assert metadata["License-Expression"] == "Apache-2.0"
        assert archive.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
        assert archive.read(f"{info}/entry_points.txt").decode().split() == [
            "[console_scripts]", "mlxmtp", "=", "mlxmtp.__main__:main"
        ]  # fmt: skip


def test_the_installed_program_knows_its_version_and_runs_from_its_own_files(environment: Environment) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version in environment.run("mlxmtp", "--version").stdout
    shown = environment.run("python", "-c", "import mlxmtp; print(mlxmtp.__version__, mlxmtp.__file__)").stdout
    assert shown.startswith(f"{version} {environment.folder}")


def test_every_library_that_an_answer_loads_is_a_declared_one(environment: Environment) -> None:
    """The environment holds more than is declared, so what is loaded is compared with what an installation brings."""
    code = (
        "import sys; from mlxmtp.cli.app import main; main(['ask', '-m', 'pocket', '--max-tokens', '3', 'Hello']); "
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = environment.run("python", "-c", code)
    loaded = set(done.stderr.splitlines()[-1].split())
    owners = packages_distributions()
    allowed = declared("mlxmtp", set())
    assert {"mlx", "typer", "tokenizers"} <= allowed
    assert not {name for name in loaded & owners.keys() if not {plain(one) for one in owners[name]} & allowed}


def declared(package: str, found: set[str]) -> set[str]:
    """Add the names of a distribution and of what it requires, without extras, to `found`."""
    if (name := plain(package)) in found:
        return found
    found.add(name)
    for line in requires(package) or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            declared(requirement.name, found)
    return found


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_installed_program_answers_with_the_drafter_as_without(environment: Environment) -> None:
    question = ("--temp", "0", "--num-draft-tokens", "4", "What is mlxmtp?")
    answer = environment.ask(*question)
    assert "mlxmtp" in answer
    assert answer.endswith("\n")
    drafted = json.loads(environment.ask("--json", *question))
    plain = json.loads(environment.ask("--json", "--no-draft", *question))
    assert drafted["response"].strip() == plain["response"].strip() == answer.strip()
    assert drafted["stats"]["accepted"] > 0
    assert plain["stats"]["drafted"] == 0


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
