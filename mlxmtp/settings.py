"""Flags, environment, config file: the only module that reads `os.environ` and `config.toml`.

Precedence: flags > environment > config file; what is still unset (None) is filled in by the model's
generation_config and then by defaults (`engine/params.py`). A key of the config file is a field of
`Settings` is a flag: `num_draft_tokens` is `--num-draft-tokens`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from mlxmtp.errors import ConfigError, MlxmtpError, UsageError
from mlxmtp.limits import MAX_DRAFT
from mlxmtp.units import nearest


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user asked for; None means that nobody said anything."""

    model: str | None = None
    system: str | None = None
    temp: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    draft: bool | None = None
    draft_model: str | None = None
    num_draft_tokens: int | Literal["auto"] | None = None
    draft_bits: int | None = None
    kv_bits: int | None = None
    think: bool | None = None
    think_tokens: int | None = None
    show_thinking: bool | None = None
    plain: bool | None = None
    stats: bool | None = None
    quiet: bool | None = None
    no_color: bool | None = None
    yes: bool | None = None
    cache: bool | None = None
    cache_gb: float | None = None


@dataclass(frozen=True, slots=True)
class Places:
    """Where files are: `config` is a file, the others are folders that need not exist.

    What is in `cache` can be made again.
    """

    config: Path
    data: Path
    hf_cache: Path
    cache: Path

    @property
    def sessions(self) -> Path:
        """The folder of saved conversations."""
        return self.data / "sessions"


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings after precedence, with what came along."""

    settings: Settings
    places: Places
    aliases: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    dumb_terminal: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    """Who set what: "flag", "environment" or "config file", by the name of the field."""


def load_settings(flags: Mapping[str, object], environ: Mapping[str, str] = os.environ) -> Loaded:
    """Put flags over environment over config file.

    `flags` holds only what was given on the command line, keyed like `Settings`.
    Raises UsageError for a bad flag, ConfigError for a bad value elsewhere.
    """
    places = find_places(environ)
    table, tables, warnings = _read_config(places.config)
    from_env: dict[str, object] = {}
    if environ.get("MLXMTP_MODEL"):
        from_env["model"] = environ["MLXMTP_MODEL"]
    if environ.get("NO_COLOR"):
        from_env["no_color"] = True
    given = {key: _checked(key, value, "--" + key.replace("_", "-"), UsageError) for key, value in flags.items()}
    return Loaded(
        settings=Settings(**{**table, **from_env, **given}),
        places=places,
        aliases=tables["aliases"],
        warnings=tuple(warnings),
        dumb_terminal=dumb_terminal(environ),
        prompts=tables["prompts"],
        origins={
            **dict.fromkeys(table, "config file"),
            **dict.fromkeys(from_env, "environment"),
            **dict.fromkeys(given, "flag"),
        },
    )


def typed_value(key: str, text: str) -> Any:
    """What a person typed for a field of `Settings`, in its type. Raises UsageError."""
    value: object = text
    for kind in (int, float):
        try:
            value = kind(text)
            break
        except ValueError:
            continue
    return _checked(key, value, key.replace("_", "-"), UsageError)


def dumb_terminal(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the terminal knows no escape codes."""
    return environ.get("TERM") == "dumb"


def editor(environ: Mapping[str, str] = os.environ) -> str:
    """The command that edits a text, as people have set it."""
    return environ.get("VISUAL") or environ.get("EDITOR") or "vi"


def git_environ(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment for asking git about a folder.

    git sets some variables for a hook; with them it would answer for the hook's repository, whatever
    folder is asked about.
    """
    of_a_hook = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX", "GIT_NAMESPACE"}
    return {name: value for name, value in environ.items() if name not in of_a_hook}


def find_places(environ: Mapping[str, str] = os.environ) -> Places:
    """`$MLXMTP_HOME` holds everything when set; else the XDG folders. The cache is Hugging Face's own."""
    home = Path(environ.get("HOME") or Path.home())

    def folder(variable: str, *default: str) -> Path:
        return Path(environ[variable]) if environ.get(variable) else home.joinpath(*default)

    hf_home = folder("HF_HOME") if environ.get("HF_HOME") else folder("XDG_CACHE_HOME", ".cache") / "huggingface"
    hf_cache = folder("HF_HUB_CACHE") if environ.get("HF_HUB_CACHE") else hf_home / "hub"
    if environ.get("MLXMTP_HOME"):
        own = Path(environ["MLXMTP_HOME"]).expanduser()
        return Places(own / "config.toml", own, hf_cache.expanduser(), own / "cache")
    return Places(
        folder("XDG_CONFIG_HOME", ".config") / "mlxmtp" / "config.toml",
        folder("XDG_DATA_HOME", ".local", "share") / "mlxmtp",
        hf_cache.expanduser(),
        folder("XDG_CACHE_HOME", ".cache") / "mlxmtp",
    )


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, str]], list[str]]:
    """Values, tables and warnings of the config file; a missing file is an empty one."""
    tables: dict[str, dict[str, str]] = {"aliases": {}, "prompts": {}}
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}, tables, []
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
    import tomllib

    try:
        raw = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from error

    tables = {name: _string_table(raw.pop(name, {}), name, path) for name in tables}
    known = {item.name for item in fields(Settings)}
    values: dict[str, Any] = {}
    warnings: list[str] = []
    for key, value in raw.items():
        name = key.replace("-", "_")
        if name in known:
            values[name] = _checked(name, value, f"{key} in {path}", ConfigError)
        else:
            warnings.append(f"Unknown key '{key}' in {path}{_suggestion(name, known)}")
    return values, tables, warnings


def _string_table(value: object, name: str, path: Path) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise ConfigError(f"[{name}] in {path} must be a table of strings.")
    return dict(value)


def _suggestion(name: str, known: set[str]) -> str:
    near = nearest(name, sorted(known | {"aliases", "prompts"}))
    return f": did you mean '{near}'?" if near else " has no effect."


def _checked(key: str, value: object, where: str, error: type[MlxmtpError]) -> Any:
    """The value in its field's type, or `error` with one sentence that names `where` and what is wanted."""
    wanted, check = _RULES[key]
    result = check(value)
    if result is None:
        shown = (
            f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else repr(value)
        )
        raise error(f"{where} must be {wanted}, not {shown}.")
    return result


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _words(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _name(value: object) -> str | None:
    return value.strip() or None if isinstance(value, str) else None


def _whole(low: int, high: int | float = math.inf) -> Any:
    def check(value: object) -> int | None:
        fits = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        return value if fits else None  # type: ignore[return-value]

    return check


def _real(low: float, high: float = math.inf, *, above: bool = False) -> Any:
    def check(value: object) -> float | None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        return float(value) if low <= value <= high and not (above and value == low) else None

    return check


def _draft_length(value: object) -> int | str | None:
    if value == "auto":
        return "auto"
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = int(value)
    number: int | None = _whole(0, MAX_DRAFT)(value)
    return number


_SWITCH = ("true or false", _flag)
_RULES: dict[str, tuple[str, Any]] = {
    "model": ("the name of a model", _name),
    "system": ("a text", _words),
    "temp": ("a number from 0 up", _real(0)),
    "top_p": ("a number above 0 and up to 1", _real(0, 1, above=True)),
    "top_k": ("a whole number from 0 (off) up", _whole(0)),
    "min_p": ("a number from 0 to 1", _real(0, 1)),
    "seed": ("a whole number from 0 to 18446744073709551615", _whole(0, 2**64 - 1)),
    "max_tokens": ("a whole number from 1 up", _whole(1)),
    "draft": _SWITCH,
    "draft_model": ("the name of a drafter", _name),
    "num_draft_tokens": (f"a whole number from 0 to {MAX_DRAFT}, or auto", _draft_length),
    "draft_bits": ("4, 8 or 16", lambda value: value if value in (4, 8, 16) and not isinstance(value, bool) else None),
    "kv_bits": ("4 or 8", lambda value: value if value in (4, 8) and isinstance(value, int) else None),
    "think": _SWITCH,
    "think_tokens": ("a whole number from 1 up", _whole(1)),
    "show_thinking": _SWITCH,
    "plain": _SWITCH,
    "stats": _SWITCH,
    "quiet": _SWITCH,
    "no_color": _SWITCH,
    "yes": _SWITCH,
    "cache": _SWITCH,
    "cache_gb": ("a number from 0 up", _real(0)),
}
