"""The shell scripts: what they run and say, with stand-ins for every tool; nothing newer than macOS's bash 3.2."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = [ROOT / "scripts" / name for name in ("_env.sh", "try", "test", "check")] + [ROOT / ".ci" / "run"]
EVERY = [*SCRIPTS, ROOT / "scripts" / "benchmarks" / "all", ROOT / "scripts" / "tool_servers"]
PYTEST = "python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile"

NEWER_THAN_BASH_3_2 = re.compile(
    r"(declare|local|typeset)\s+-[a-zA-Z]*[Anul]|mapfile|readarray|coproc|wait\s+-n|globstar|lastpipe|&>>|\|&|;;?&|\[\[\s+-v"
    r"|\$\{\w+(,|\^|@[A-Za-z]|: -|\[-)|%\(|EPOCHSECONDS|EPOCHREALTIME|BASHPID|SRANDOM|\{\d+\.\.\d+\.\.\d+\}"
)

# Logs how it was called, makes what `venv` and an installation would make, and fails where the test says so.
STAND_IN = """#!/bin/bash
name=${0##*/}
echo "$name $*" >>"$LOG"
case "$name $*" in
    "uv venv"*|*"-m venv"*)
        mkdir -p .venv/bin
        for tool in python mlxmtp ruff mypy; do cp "$0" .venv/bin/$tool; done ;;
    *"-c "*) exit 0 ;;
    *pytest*) echo "3 passed, 1 skipped" ;;
esac
if [[ -n $FAILING && "$name $*" =~ $FAILING ]]; then echo "$name does not work" >&2; exit 1; fi
"""


@dataclass(frozen=True, slots=True)
class Checkout:
    """A copy of the scripts in a folder of its own, with stand-ins first on PATH."""

    folder: Path

    def run(self, script: str, *args: str, failing: str = "") -> subprocess.CompletedProcess[str]:
        env = {"PATH": f"{self.folder}/tools:/usr/bin:/bin", "LOG": str(self.folder / "log"), "FAILING": failing}
        command = [str(self.folder / script), *args]
        return subprocess.run(command, env=env, cwd="/", capture_output=True, text=True, check=False)

    def log(self) -> list[str]:
        """The calls since the last look."""
        path = self.folder / "log"
        lines = path.read_text().splitlines() if path.exists() else []
        path.write_text("")
        return [line.rstrip() for line in lines if " -c " not in line and line != "uv --version"]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    for name in ("scripts", ".ci", "tools"):
        (tmp_path / name).mkdir()
    for script in SCRIPTS:
        shutil.copy(script, tmp_path / script.relative_to(ROOT))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name in ("uv", "python3"):
        tool = tmp_path / "tools" / name
        tool.write_text(STAND_IN)
        tool.chmod(0o755)
    return Checkout(tmp_path)


def test_try_makes_the_environment_once_and_asks_the_built_in_model(checkout: Checkout) -> None:
    assert checkout.run("scripts/try").returncode == 0
    assert checkout.log() == [
        "uv venv --quiet --python >=3.11 .venv",
        "uv pip install --quiet --python .venv/bin/python -e .",
        "mlxmtp ask --model pocket What can you do?",
    ]
    checkout.run("scripts/try", "two words", "more")
    assert checkout.log() == ["mlxmtp ask --model pocket two words more"]


def test_the_test_environment_serves_try_too(checkout: Checkout) -> None:
    checkout.run("scripts/test")
    assert "uv pip install --quiet --python .venv/bin/python -e .[dev]" in checkout.log()
    checkout.run("scripts/try", "hello")
    assert checkout.log() == ["mlxmtp ask --model pocket hello"]


def test_a_changed_pyproject_is_installed_again(checkout: Checkout) -> None:
    checkout.run("scripts/try")
    checkout.log()
    with (checkout.folder / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    checkout.run("scripts/try")
    assert checkout.log()[0] == "uv pip install --quiet --python .venv/bin/python -e ."


@pytest.mark.parametrize("failing", ["uv --version", "uv pip install"])
def test_pip_takes_over_where_uv_is_missing_or_cannot(checkout: Checkout, failing: str) -> None:
    done = checkout.run("scripts/try", failing=f"{failing}|pip --version")
    assert done.returncode == 0, done.stderr
    assert "python3 -m venv .venv" in checkout.log()


@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="there is no Python where a Mac has the stub")
@pytest.mark.parametrize(
    ("system", "tools", "found"), [("Darwin", 2, "python3.14"), ("Darwin", 0, "python3"), ("Linux", 2, "python3")]
)
def test_apples_stub_of_python_is_left_alone(checkout: Checkout, system: str, tools: int, found: str) -> None:
    (checkout.folder / "tools" / "python3").unlink()
    for name, does in {"uname": f"echo {system}", "xcode-select": f"exit {tools}", "python3.14": "exit 0"}.items():
        stand_in = checkout.folder / "tools" / name
        stand_in.write_text(f"#!/bin/sh\n{does}\n")
        stand_in.chmod(0o755)
    asked = f"PATH={checkout.folder}/tools:/usr/bin:/bin; . {checkout.folder}/scripts/_env.sh; find_python"
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout == found


def test_an_installation_that_failed_is_tried_again(checkout: Checkout) -> None:
    done = checkout.run("scripts/try", failing="install")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "scripts/try: could not install; the reason stands above"
    assert checkout.run("scripts/try").returncode == 0


def test_test_runs_every_part_and_shows_what_pytest_says(checkout: Checkout) -> None:
    done = checkout.run("scripts/test", "-k", "ring")
    assert done.returncode == 0, done.stderr
    assert "3 passed, 1 skipped" in done.stdout
    assert done.stderr.splitlines()[-1] == "scripts/test: all passed"
    assert checkout.log()[-4:] == ["ruff check", "ruff format --check", "mypy", f"{PYTEST} -k ring"]


def test_test_without_options_goes_a_gpus_ways_as_well(checkout: Checkout) -> None:
    assert checkout.run("scripts/test").returncode == 0
    plain, on_gpu = checkout.log()[-2:]
    assert plain == PYTEST
    assert on_gpu.startswith(f"{PYTEST} --as-gpu")
    named = [word for word in on_gpu.split() if word.startswith("tests/")]
    assert named == [name for name in named if (ROOT / name).is_file()] != []


@pytest.mark.parametrize(
    ("failing", "named"),
    [
        ("ruff", "lint, format"),
        ("mypy", "types"),
        ("pytest", "tests, tests as on a GPU"),
        ("ruff check|mypy", "lint, types"),
    ],
)
def test_a_failure_is_named_last_and_the_rest_still_runs(checkout: Checkout, failing: str, named: str) -> None:
    done = checkout.run("scripts/test", failing=failing)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"scripts/test: FAILED: {named}"
    assert checkout.log()[-2] == PYTEST


def test_check_leaves_out_the_slow_tests(checkout: Checkout) -> None:
    assert checkout.run("scripts/check").returncode == 0
    assert checkout.log()[-1] == f"{PYTEST} -q -m not slow"


def test_continuous_integration_runs_the_tests(checkout: Checkout) -> None:
    done = checkout.run(".ci/run", failing="mypy")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "scripts/test: FAILED: types"


@pytest.mark.parametrize("script", EVERY, ids=lambda path: path.name)
def test_scripts_parse_and_use_nothing_newer_than_bash_3_2(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    found = [line for line in script.read_text().splitlines() if NEWER_THAN_BASH_3_2.search(line)]
    assert not found


@pytest.mark.parametrize(
    "line",
    ["declare -A seen", "local -n ref=$1", "mapfile -t lines", "x=${name,,}", "x=${name^}", "x=${name@Q}", "a |& b",
     "a &>> log", "printf '%(%F)T'", "echo ${list[-1]}", "[[ -v name ]]", "for i in {1..9..2}; do"],
)  # fmt: skip
def test_the_pattern_knows_what_is_newer(line: str) -> None:
    assert NEWER_THAN_BASH_3_2.search(line)


def test_shellcheck_finds_nothing() -> None:
    program = Path(sys.executable).with_name("shellcheck")
    found = str(program) if program.exists() else shutil.which("shellcheck")
    if found is None:
        pytest.skip("shellcheck is not installed; it comes with the dev extra")
    subprocess.run([found, "--external-sources", "--shell=bash", *EVERY], cwd=ROOT, check=True)


def test_workflows_are_what_github_reads() -> None:
    """Checked against the published schema, which needs no network; and they call scripts that exist."""
    files = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    program = Path(sys.executable).with_name("check-jsonschema")
    if not program.exists():
        pytest.skip("check-jsonschema is not installed; it comes with the dev extra")
    subprocess.run([program, "--builtin-schema", "vendor.github-workflows", *files], check=True, capture_output=True)
    for script in re.findall(r"run: (scripts/\w+)", "".join(file.read_text() for file in files)):
        assert (ROOT / script).exists(), script


def test_every_table_of_the_benchmarks_is_among_those_that_are_made_again() -> None:
    page = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    every = (ROOT / "scripts/benchmarks/all").read_text(encoding="utf-8")
    programs = set(re.findall(r"begin \(scripts/benchmarks/(\w+)\.py", page))
    assert {"peers", "streams"} <= programs
    assert [one for one in sorted(programs) if f"scripts.benchmarks.{one} " not in every] == []
