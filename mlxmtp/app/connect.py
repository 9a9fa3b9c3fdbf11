"""Settings of programs that work with a server of ours, in the form that each of them reads (their docs, late 2026)."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxmtp.app.remote import RemoteModel
from mlxmtp.environment import SERVER_KEY, client_folder, user_config
from mlxmtp.errors import UsageError
from mlxmtp.files import write_atomically

_CONTEXT = 32_768  # where the server does not say
_BEGIN, _END = "# mlxmtp: begin\n", "# mlxmtp: end\n"
_MEANT = re.compile(r"[{}\x00-\x1f\x7f]")  # in a name: what some files take for more than text
_HELPER, _TOKEN, _NO_KEY = f'echo "${SERVER_KEY}"', "ANTHROPIC_AUTH_TOKEN", "none"

Table = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Server:
    """The address without /v1, the model, and whether a key is asked for."""

    url: str
    model: RemoteModel
    locked: bool

    @property
    def context(self) -> int:
        return self.model.context or _CONTEXT

    @property
    def model_in_quotes(self) -> str:
        """The model's name as JSON, TOML and YAML write it."""
        return json.dumps(self.model.name, ensure_ascii=False)

    @property
    def answer(self) -> int:
        """Tokens that a program may leave for an answer."""
        return min(8192, self.context // 4)


@dataclass(frozen=True, slots=True)
class Client:
    """A program: its file, what goes there (JSON to merge, or text), and what then begins it.

    `once`: the same without the file, {connect} is the command line that says what goes there, {then} is `then`.
    """

    title: str
    path: Callable[[], Path]
    content: Callable[[Server], Table | str]
    then: Callable[[Server], str]
    once: str = ""


def _claude(server: Server) -> Table:
    name = server.model.name
    models = {f"ANTHROPIC_DEFAULT_{kind}_MODEL": name for kind in ("OPUS", "SONNET", "HAIKU")}
    environment = {"ANTHROPIC_BASE_URL": server.url, "ANTHROPIC_MODEL": name, **models}
    # More than the context holds is asked for otherwise, and the vendor is told of every start.
    environment |= {
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(server.answer),
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(server.context),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    if server.locked:
        return {"apiKeyHelper": _HELPER, "env": environment}
    return {"env": {**environment, _TOKEN: _NO_KEY}}


def _codex(server: Server) -> str:
    name = server.model_in_quotes
    lines = [f"model = {name}", 'model_provider = "mlxmtp"', f"model_context_window = {server.context}", ""]
    lines += ["[model_providers.mlxmtp]", 'name = "mlxmtp"', f'base_url = "{server.url}/v1"', 'wire_api = "responses"']
    lines += [f'env_key = "{SERVER_KEY}"'] if server.locked else []
    lines += ["stream_max_retries = 1"]  # an answer that fills the context would be asked for six times
    return "\n".join([*lines, ""])


def _opencode(server: Server) -> Table:
    limit = {"context": server.context, "output": server.answer}
    model: Table = {"name": server.model.name, "tool_call": True, "reasoning": True, "limit": limit}
    if server.model.sees:
        model |= {"attachment": True, "modalities": {"input": ["text", "image"], "output": ["text"]}}
    options = {"baseURL": f"{server.url}/v1", "apiKey": f"{{env:{SERVER_KEY}}}" if server.locked else "none"}
    provider: Table = {"npm": "@ai-sdk/openai-compatible", "name": "mlxmtp", "options": options}
    provider["models"] = {server.model.name: model}
    return {"$schema": "https://opencode.ai/config.json", "provider": {"mlxmtp": provider}}


def _zed(server: Server) -> Table:
    able = {"tools": True, "images": server.model.sees, "parallel_tool_calls": True, "prompt_cache_key": False}
    able["interleaved_reasoning"] = True  # thoughts are sent back as text otherwise
    model = {"name": server.model.name, "max_tokens": server.context, "max_output_tokens": server.answer}
    provider = {"api_url": f"{server.url}/v1", "available_models": [{**model, "capabilities": able}]}
    return {"language_models": {"openai_compatible": {"mlxmtp": provider}}}


def _llm(server: Server) -> str:
    lines = [
        f"- model_id: {json.dumps('mlxmtp')}",
        f"  model_name: {server.model_in_quotes}",
    ]
    lines += [f"  api_base: {json.dumps(f'{server.url}/v1')}"]
    lines += ["  can_stream: true", "  supports_tools: true", "  supports_schema: true"]
    lines += ["  vision: true"] if server.model.sees else []
    lines += ["  api_key_name: mlxmtp"] if server.locked else []
    return _BEGIN + "\n".join([*lines, ""]) + _END


def _continue(server: Server) -> str:
    key = f"${{{{ secrets.{SERVER_KEY} }}}}" if server.locked else "none"
    lines = [
        "name: mlxmtp",
        "version: 0.0.1",
        "schema: v1",
        "models:",
        f"  - name: {server.model_in_quotes}",
    ]
    lines += ["    provider: openai", f"    model: {server.model_in_quotes}"]
    lines += [f"    apiBase: {json.dumps(f'{server.url}/v1')}", f"    apiKey: {json.dumps(key)}"]
    able = "tool_use, image_input" if server.model.sees else "tool_use"
    lines += ["    roles: [chat, edit, apply]", f"    capabilities: [{able}]", "    defaultCompletionOptions:"]
    return "\n".join([*lines, f"      contextLength: {server.context}", f"      maxTokens: {server.answer}", ""])


def _with_key(command: str, server: Server) -> str:
    return f"{command} (with {SERVER_KEY} in its environment)" if server.locked else command


CLIENTS: Mapping[str, Client] = {
    "claude": Client(
        "Claude Code",
        lambda: client_folder("CLAUDE_CONFIG_DIR", ".claude") / "settings.json",
        _claude,
        lambda server: _with_key("claude", server),
        'claude --settings "$({connect})"',
    ),
    "codex": Client(
        "Codex",
        lambda: client_folder("CODEX_HOME", ".codex") / "mlxmtp.config.toml",
        _codex,
        lambda server: _with_key("codex --profile mlxmtp", server),
    ),
    "opencode": Client(
        "opencode",
        lambda: client_folder("XDG_CONFIG_HOME", ".config") / "opencode" / "opencode.json",
        _opencode,
        lambda server: _with_key(f"opencode --model {shlex.quote(f'mlxmtp/{server.model.name}')}", server),
        'OPENCODE_CONFIG_CONTENT="$({connect})" {then}',
    ),
    "llm": Client(
        "llm",
        lambda: user_config("LLM_USER_PATH", "io.datasette.llm") / "extra-openai-models.yaml",
        _llm,
        lambda server: ("llm keys set mlxmtp, then " if server.locked else "") + "llm -m mlxmtp 'Hello'",
    ),
    "zed": Client(
        "Zed",
        lambda: client_folder("XDG_CONFIG_HOME", ".config") / "zed" / "settings.json",
        _zed,
        lambda server: (
            f"choose {server.model.name} in the agent panel; "
            + ("its key" if server.locked else "a key, which Zed always wants (any word),")
            + f" goes into {SERVER_KEY}, or into the panel's settings"
        ),
    ),
    "continue": Client(
        "Continue",
        lambda: client_folder("CONTINUE_GLOBAL_DIR", ".continue") / "config.yaml",
        _continue,
        lambda server: (
            "choose the model in Continue" + (f"; {SERVER_KEY} goes into ~/.continue/.env" if server.locked else "")
        ),
    ),
}


def _content(client: Client, server: Server) -> Table | str:
    """Return a client's settings. The model's name is the server's word: in some files braces stand for a file."""
    if _MEANT.search(server.model.name):
        told = f"The server at {server.url} has a model with a name that settings cannot hold"
        raise UsageError(f"{told}: name another one with -m.")
    return client.content(server)


def text_of(client: Client, server: Server) -> str:
    """Return what goes into the client's file. Raises UsageError for a model whose name no settings can hold."""
    content = _content(client, server)
    return content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"


@dataclass(frozen=True, slots=True)
class Written:
    """A file that was written, and the copy of the one before."""

    path: Path
    backup: Path | None


def write(client: Client, server: Server) -> Written:
    """Put the settings into the client's file; what else is there stays. Raises UsageError where that cannot be."""
    path = client.path()
    try:
        before = path.read_text(encoding="utf-8") if path.exists() else None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read ({error}): mend it, or put the settings there by hand.") from None
    text = _joined(before, _content(client, server), path)
    backup = None
    try:
        if before is not None and before != text:
            backup = _free(path)
            shutil.copy2(path, backup)
        private = before is not None and not path.stat().st_mode & 0o077
        write_atomically(path, text, parents=True, private=private)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written ({error.strerror or error}): put the settings there by hand."
        ) from None
    return Written(path, backup)


def _joined(before: str | None, content: Table | str, path: Path) -> str:
    """Return a file's text with the settings in it."""
    if isinstance(content, str):
        if before is None or not before.strip() or path.name == "mlxmtp.config.toml":
            return content
        if not content.startswith(_BEGIN):
            raise UsageError(f"{path} is there already: put the settings into it by hand, mlxmtp connect shows them.")
        head, begin, rest = before.partition(_BEGIN)
        _, end, tail = rest.partition(_END)
        kept = head + tail if begin and end else before
        return kept + ("" if kept.endswith("\n") or not kept else "\n") + content
    try:
        table = json.loads(before) if before and before.strip() else {}
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise UsageError(
            f"{path} is no plain JSON (comments?): put the settings into it by hand, mlxmtp connect shows them."
        )
    return json.dumps(_one_key(_merged(table, content), content), indent=2, ensure_ascii=False) + "\n"


def _one_key(table: Table, content: Table) -> Table:
    """Return Claude Code's settings with one way to the key: a token of ours from before would win over the helper."""
    env = table.get("env")
    if content.get("apiKeyHelper") == _HELPER and isinstance(env, dict) and env.get(_TOKEN) == _NO_KEY:
        return {**table, "env": {name: value for name, value in env.items() if name != _TOKEN}}
    if _TOKEN in content.get("env", {}) and table.get("apiKeyHelper") == _HELPER:
        return {name: value for name, value in table.items() if name != "apiKeyHelper"}
    return table


def _merged(table: Table, more: Table) -> Table:
    found = dict(table)
    for key, value in more.items():
        here = found.get(key)
        found[key] = _merged(here, value) if isinstance(here, dict) and isinstance(value, dict) else value
    return found


def _free(path: Path) -> Path:
    """Return a name for a copy that is not taken."""
    names = (path.with_name(f"{path.name}.before-mlxmtp{f'-{n}' if n else ''}") for n in range(1000))
    return next(name for name in names if not name.exists())
