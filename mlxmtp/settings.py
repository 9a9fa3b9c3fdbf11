"""The table of settings, and the only module that reads `config.toml`; with `environment.py` it reads `os.environ`."""

import os
import pwd
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from mlxmtp.environment import dumb_terminal
from mlxmtp.errors import ConfigError, MlxmtpError, UsageError
from mlxmtp.limits import DRAFTS, IMAGE_TOKENS, MAX_DRAFT, SAMPLING, STREAMS, TOKEN_COUNT, Range
from mlxmtp.units import nearest

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rule:
    """The values a setting may have."""

    wanted: str  # completes "it must be"
    reads: Any  # the type of a flag's value
    check: Callable[[object], Any]  # returns the value in the field's type, None for one that is not allowed


def number(allowed: Range) -> Rule:
    """Allow the numbers of a range."""

    def check(value: Any) -> float | None:
        kinds = int if allowed.whole else int | float
        good = isinstance(value, kinds) and not isinstance(value, bool) and value in allowed
        return None if not good else value if allowed.whole else float(value)

    return Rule(str(allowed), int if allowed.whole else float, check)


def number_or(allowed: Range, word: str) -> Rule:
    """Allow the whole numbers of a range, also as text, and one word."""
    numbers = number(allowed)

    def check(value: object) -> Any:
        if isinstance(value, str) and value.isascii() and value.isdecimal():
            return numbers.check(int(value))
        return word if value == word else numbers.check(value)

    return Rule(f"{allowed}, or {word}", str, check)


def choice(*values: str | int) -> Rule:
    """Allow some words, or some numbers."""

    def check(value: object) -> object:
        return None if isinstance(value, bool) else next((one for one in values if one == value), None)

    return Rule(f"{', '.join(map(str, values[:-1]))} or {values[-1]}", type(values[0]), check)


def name_of(what: str) -> Rule:
    """Allow a text that is not blank."""
    return Rule(f"the name of {what}", str, lambda value: value.strip() or None if isinstance(value, str) else None)


def texts(value: object) -> tuple[str, ...] | None:
    """Return one text or several as a tuple, None for anything else and for an empty text."""
    found = [value] if isinstance(value, str) else value
    good = isinstance(found, list | tuple) and all(isinstance(one, str) and one for one in found)
    return tuple(found) if good and found else None  # type: ignore[arg-type]


TEXTS = Rule("a text, or a list of texts, none of them empty", list[str], texts)
TEXT = Rule("a text", str, lambda value: value if isinstance(value, str) else None)
SWITCH = Rule("true or false", bool, lambda value: value if isinstance(value, bool) else None)

EVERY = ("every",)
_ANSWERING = ("ask", "chat", "map", "serve")
_NAMING = (*_ANSWERING, "connect")
_TALKING = ("ask", "chat")
_RUNNING = ("ask", "chat", "map", "bench", "serve")
_FETCHING = (*_RUNNING, "pull", "convert")
_SAMPLING = {"commands": _RUNNING, "section": "sampling", "in_chat": True, "of_answer": True}
_DRAFTS = {"commands": _ANSWERING, "section": "drafting", "of_answer": True}
_DRAFTING = {"commands": _RUNNING, "section": "drafting"}
_SERVING = {"commands": ("serve",), "section": "address"}
_TOOLS = {"commands": _TALKING, "section": "tools", "in_config": False}
_FORM = {"commands": ("ask", "map"), "section": "form", "in_config": False}


@dataclass(frozen=True, slots=True)
class Setting:
    """One entry of the table, without the name and the type, which are the field's."""

    usage: str  # flags as typer takes them, then the metavar: `-m --model NAME`; empty for a setting without a flag
    rule: Rule
    help: str
    default: str  # in words; the value itself belongs to the place that uses it
    commands: tuple[str, ...] = ()
    section: str = ""  # of a command's help
    environment: str = ""
    in_config: bool = True
    in_chat: bool = False  # taken by `/set`
    of_answer: bool | str = False  # a field of `engine.params.Params`; its name there where that differs

    @property
    def flags(self) -> tuple[str, ...]:
        return tuple(word for word in self.usage.split() if word.startswith("-"))

    @property
    def metavar(self) -> str | None:
        return next((word for word in self.usage.split() if not word.startswith("-")), None)


def setting(usage: str, rule: Rule, help: str, default: str, **more: Any) -> Any:
    """Return a field of a table of settings."""
    return field(default=None, metadata={"setting": Setting(usage, rule, help, default, **more)})


def table_of(settings: type) -> dict[str, Setting]:
    """Return the entries of a dataclass, of which some fields are settings, by name."""
    return {item.name: item.metadata["setting"] for item in fields(settings) if item.metadata}


# fmt: off
@dataclass(frozen=True, slots=True)
class Settings:
    """The table, and one row of values: what the user asked for, None where nobody said anything.

    Flags, config keys, environment variables, `/set` and docs/settings.md come from the fields. Flags win over the
    environment, that over the file; None is filled in from generation_config, then defaults (`engine/params.py`).
    """

    model: str | None = setting(
        "-m --model NAME", name_of("a model"), "Alias, org/repo, path, server, or auto (router). Also MLXMTP_MODEL.",
        "an installed model, else pocket", commands=_NAMING, environment="MLXMTP_MODEL")
    url: str | None = setting(
        "--url URL", name_of("a server"), "Server that answers: address or endpoint. Also MLXMTP_URL.",
        "none; `connect`: http://127.0.0.1:8765", commands=("ask", "chat", "map", "connect"), environment="MLXMTP_URL")
    system: str | None = setting(
        "-s --system TEXT", TEXT, "System prompt; @FILE reads a file, @NAME one of [prompts] in the config.",
        "none", commands=("ask", "chat", "map", "bench"))
    temp: float | None = setting(
        "--temp T", number(SAMPLING["temp"]), "Temperature; 0 is greedy.", "the model's, else 0", **_SAMPLING)
    top_p: float | None = setting(
        "--top-p P", number(SAMPLING["top_p"]), "Nucleus sampling; 1 is off.", "the model's, else 1", **_SAMPLING)
    top_k: int | None = setting(
        "--top-k K", number(SAMPLING["top_k"]), "Only the K likeliest tokens; 0 is off.",
        "the model's, else 0", **_SAMPLING)
    min_p: float | None = setting(
        "--min-p P", number(SAMPLING["min_p"]), "Only tokens at least this likely relative to the best.",
        "the model's, else 0", **_SAMPLING)
    seed: int | None = setting(
        "--seed N", number(SAMPLING["seed"]), "The same seed gives the same answer.",
        "another one every time; `bench`: 0", **_SAMPLING)
    max_tokens: int | None = setting(
        "--max-tokens N", number(TOKEN_COUNT), "Stop after N tokens.",
        "the model's, else the context", commands=_ANSWERING, section="sampling", in_chat=True, of_answer=True)
    stop: tuple[str, ...] | None = setting(
        "--stop TEXT", TEXTS, "End the answer before this text; may be given several times.",
        "none", commands=_ANSWERING, section="sampling", of_answer="stop_strings")
    draft: bool | None = setting(
        "--draft/--no-draft", SWITCH, "Draft ahead with the model's drafter.", "where there is one", **_DRAFTING)
    draft_model: str | None = setting(
        "--draft-model NAME", name_of("a drafter"), "Another drafter than the paired one.",
        "the paired one", **_DRAFTING)
    num_draft_tokens: int | Literal["auto"] | None = setting(
        "--num-draft-tokens N|auto", number_or(DRAFTS, "auto"),
        f"Draft tokens per round, 0 (off) to {MAX_DRAFT}, or auto.", "auto", **_DRAFTS)
    draft_from: str | None = setting(
        "--draft-from SOURCE", choice("mtp", "copy", "mtp,copy"),
        "Drafts of automatic length: mtp (the drafter), copy (of the text so far), or mtp,copy.", "mtp", **_DRAFTS)
    exact: Literal["on", "off", "auto"] | None = setting(
        "--exact MODE", choice("on", "off", "auto"), "The same text bit for bit with any drafts: on, off or auto.",
        "auto: on a GPU where `doctor --check` found it free", **_DRAFTING)
    draft_bits: int | None = setting(
        "--draft-bits N", choice(4, 8, 16), "Quantize the drafter to 4 or 8 bits; 16 does not.",
        "by the drafter's size", **_DRAFTING)
    kv_bits: int | None = setting(
        "--kv-bits N", choice(4, 8), "Keep full layers' keys and values in 4 or 8 bits: less memory.",
        "not quantized", **_DRAFTING)
    think: bool | None = setting(
        "--think/--no-think", SWITCH, "Let the model reason first.",
        "off", commands=_RUNNING, section="thinking", of_answer=True)
    think_tokens: int | None = setting(
        "--think-tokens N", number(TOKEN_COUNT), "End the reasoning after N tokens and answer.",
        "no limit", commands=_ANSWERING, section="thinking", in_chat=True, of_answer=True)
    show_thinking: bool | None = setting(
        "--show-thinking/--hide-thinking", SWITCH, "Reasoning on stderr; shown on terminals by default.",
        "on terminals", commands=_TALKING, section="thinking")
    image_tokens: int | None = setting(
        "--image-tokens N", choice(*IMAGE_TOKENS), "Most tokens for each image: 70, 140, 280, 560 or 1120.",
        "the model's (280)", commands=(*_ANSWERING, "bench"), in_chat=True, of_answer=True)
    schema: str | None = setting(
        "--schema SCHEMA", name_of("a schema"), "JSON of a schema: FILE, JSON, module:Class or 'name, age int'.",
        "any text", **{**_FORM, "commands": ("ask", "map", "bench")})
    regex: str | None = setting(
        "--regex PATTERN", TEXT, "Text that matches a regular expression as a whole.", "any text", **_FORM)
    grammar: str | None = setting(
        "--grammar FILE", name_of("a file"), "Text of a Lark grammar.", "any text", **_FORM)
    json_output: bool | None = setting("--json-output", SWITCH, "Any JSON.", "any text", **_FORM)
    functions: tuple[str, ...] | None = setting(
        "--functions FILE", TEXTS, "Let it call the functions of a Python file.", "none", **_TOOLS)
    allow: tuple[str, ...] | None = setting("--allow TOOL", TEXTS, "Run SERVER/TOOL without asking.", "none", **_TOOLS)
    plain: bool | None = setting(
        "--plain", SWITCH, "Raw text on a terminal, too.",
        "off", commands=("ask", "chat", "sessions show"), section="display")
    stats: bool | None = setting(
        "--stats", SWITCH, "Speed, drafts and seed on stderr.", "off; `chat`: on", commands=("ask",), section="display")
    quiet: bool | None = setting(
        "-q --quiet", SWITCH, "No notes, progress or reasoning on stderr.",
        "off", commands=("ask", "map", "bench", "serve", "pull", "convert"), section="display")
    no_color: bool | None = setting(
        "--no-color", SWITCH, "No colours. Also NO_COLOR.", "off", commands=EVERY, environment="NO_COLOR")
    yes: bool | None = setting(
        "-y --yes", SWITCH, "Accept a download.", "off", commands=_FETCHING)
    cache: bool | None = setting(
        "--cache/--no-cache", SWITCH, "Keep prompt caches on disk: the next question on a text reads only itself.",
        "off", commands=("ask", "serve"))
    cache_gb: float | None = setting(
        "", number(Range(0)), "Largest size of all prompt caches on disk, in GB.", "20")
    parallel: int | None = setting(
        "--parallel N", number(STREAMS), "Answers at a time.", "4", commands=("map", "serve"))
    host: str | None = setting(
        "--host ADDRESS", name_of("an interface"), "Address to listen on; others than this machine's need a key.",
        "127.0.0.1", **_SERVING)
    port: int | None = setting(
        "--port N", number(Range(0, 65535, whole=True)), "Port to listen on; 0 takes a free one.", "8765", **_SERVING)
    api_key_file: str | None = setting(
        "--api-key-file PATH", name_of("a file"), "File with the key that clients must send. Also MLXMTP_API_KEY.",
        "none", commands=("serve",), section="access")
    origins: str | None = setting(
        "--origins LIST", TEXT, "Web origins that may ask (CORS), as https://NAME:PORT,https://NAME.",
        "none", commands=("serve",), section="access")
    fetch_media: bool | None = setting(
        "--fetch-media", SWITCH, "Fetch images and PDFs that requests name by address, from public ones only.",
        "off", commands=("serve",), section="access")
    max_waiting: int | None = setting(
        "--max-waiting N", number(Range(0, whole=True)), "Requests that may wait; more are refused.",
        "64", commands=("serve",), section="access")
    heartbeat: float | None = setting(
        "--heartbeat SECONDS", number(Range(0)), "Keep-alive message in idle streams; 0 sends none.",
        "10", commands=("serve",), section="access")
    keep_alive: float | None = setting(
        "--keep-alive MINUTES", number(Range(0)), "Free the model's memory after this long without a request.",
        "it stays", commands=("serve",), section="access")
    force: bool | None = setting(
        "--force", SWITCH, "Try even if the memory is too small.", "off", commands=_RUNNING, in_config=False)
    debug: bool | None = setting(
        "--debug", SWITCH, "Show a traceback when something fails.", "off", commands=EVERY, in_config=False)

    def of_answer(self) -> dict[str, Any]:
        """Return what was said about answers, by the names of `engine.params.Params`."""
        said = ((TABLE[name].of_answer, name, value) for name, value in self.said().items())
        return {field if isinstance(field, str) else name: value for field, name, value in said if field}

    @property
    def in_form(self) -> bool:
        """True if answers are held to a form; then they are no markdown."""
        return any(value for name, value in self.said().items() if TABLE[name].section == "form")

    def said(self) -> dict[str, Any]:
        """Return every value that somebody has set, by name."""
        return {name: value for name in TABLE if (value := getattr(self, name)) is not None}
# fmt: on


TABLE = table_of(Settings)
CHAT_KEYS = tuple(name.replace("_", "-") for name, one in TABLE.items() if one.in_chat)  # as they are typed


@dataclass(frozen=True, slots=True)
class Places:
    """The places of files: `config` is a file, the others are folders that need not exist."""

    config: Path
    data: Path
    hf_cache: Path
    cache: Path  # can be made again

    @property
    def sessions(self) -> Path:
        return self.data / "sessions"


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings after precedence, with what came along."""

    settings: Settings
    places: Places
    aliases: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    dumb_terminal: bool = False
    broken: str = ""  # what is wrong with the config file, which counts as empty then
    prompts: Mapping[str, str] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)  # "flag", "environment" or "config file", by field
    endpoints: Mapping[str, Any] = field(default_factory=dict)  # [endpoint.NAME], as written: `app/endpoints.py` checks
    router: Mapping[str, Any] = field(default_factory=dict)  # [router], as written: `app/router.py` checks
    skills: tuple[Any, ...] = ()  # [[skill]], as written


def load_settings(
    flags: Mapping[str, object], environ: Mapping[str, str] = os.environ, *, tolerant: bool = False
) -> Loaded:
    """Put flags over environment over config file. Raises UsageError for a bad flag, ConfigError for others.

    With `tolerant` a config file that is wrong counts as empty, and the first warning says what is wrong.
    """
    places = find_places(environ)
    try:
        return _combined(flags, environ, places, _read_toml(places.config))
    except ConfigError as error:
        if not tolerant:
            raise
        loaded = _combined(flags, environ, places, {})
        return replace(loaded, broken=str(error), warnings=(str(error), *loaded.warnings))


def _combined(flags: Mapping[str, object], environ: Mapping[str, str], places: Places, config: Any) -> Loaded:
    tables = {name: config.pop(name, {}) for name in ("aliases", "prompts")}
    for name, table in tables.items():
        if not isinstance(table, dict) or not all(isinstance(item, str) for item in table.values()):
            raise ConfigError(f"[{name}] in {places.config} must be a table of strings.")
    nested = {"endpoints": config.pop("endpoint", {}), "router": config.pop("router", {})}
    skills = config.pop("skill", [])
    if not all(isinstance(one, dict) for one in nested.values()) or not isinstance(skills, list):
        written = "[endpoint.NAME] and [router] once each, [[skill]] as often as needed"
        raise ConfigError(f"Endpoints and the router stand in tables in {places.config}: {written}.")
    known = {name for name, one in TABLE.items() if one.in_config}
    warnings = []
    for key in [key for key in config if key.replace("-", "_") not in known]:
        del config[key]
        near = nearest(key.replace("-", "_"), sorted(known | tables.keys() | {"endpoint", "router", "skill"}))
        advice = f": did you mean '{near}'?" if near else " has no effect."
        warnings.append(f"Unknown key '{key}' in {places.config}{advice}")
    settings, origins = resolve(Settings, flags, environ, config, places.config)
    more = {**tables, **nested, "skills": tuple(skills), "warnings": tuple(warnings), "origins": origins}
    return Loaded(settings, places, dumb_terminal=dumb_terminal(environ), **more)


def read_table(table: type[T], said: object, where: str) -> T:
    """Return a table of the config file with its values checked. Raises ConfigError, also for keys it does not have."""
    entries = table_of(table)
    if not isinstance(said, dict):
        raise ConfigError(f"{where} must be a table of {', '.join(entries)}.")
    for key in said:
        if key.replace("-", "_") not in entries:
            near = nearest(key.replace("-", "_"), sorted(entries))
            there = f"did you mean '{near}'?" if near else f"there are {', '.join(entries)}."
            raise ConfigError(f"{where} has no key '{key}': {there}")
    return resolve(table, {}, {}, said, where)[0]


def resolve(
    table: type[T],
    flags: Mapping[str, object],
    environ: Mapping[str, str],
    config: Mapping[str, object],
    file: Path | str,
) -> tuple[T, dict[str, str]]:
    """Return the values of a table of settings, checked, and who set them. Raises as `load_settings` does."""
    entries = table_of(table)
    said = [(key.replace("-", "_"), value, f"{key} in {file}", "config file") for key, value in config.items()]
    for name, one in entries.items():
        if text := environ.get(one.environment):
            reads = one.rule.reads  # a switch is on when its variable is there and not empty
            value = True if reads is bool else text if reads is str else number_or_text(text)
            said.append((name, value, one.environment, "environment"))
    said += [(name, value, "--" + name.replace("_", "-"), "flag") for name, value in flags.items()]
    values = {
        name: checked(entries[name], value, where, UsageError if origin == "flag" else ConfigError)
        for name, value, where, origin in said
    }
    return table(**values), {name: origin for name, _, _, origin in said}


def typed_value(key: str, text: str) -> Any:
    """Return what a person typed for a setting, in its type. Raises UsageError."""
    return checked(TABLE[key], number_or_text(text), key.replace("_", "-"), UsageError)


def checked(entry: Setting, value: object, where: str, error: type[MlxmtpError]) -> Any:
    """Return the value in its field's type, or raise `error`: one sentence that names `where` and what is wanted."""
    if (result := entry.rule.check(value)) is None:
        shown = repr(value)
        shown = ", ".join(map(repr, value)) if isinstance(value, list) and value else shown
        shown = shown.lower() if isinstance(value, bool) else shown
        raise error(f"{where} must be {entry.rule.wanted}, not {shown}.")
    return result


def find_places(environ: Mapping[str, str] = os.environ) -> Places:
    """Find the folders: below `$MLXMTP_HOME` when set, else XDG's; `hf_cache` is Hugging Face's own."""
    from mlxmtp.files import expand_home

    home = Path("/")
    with suppress(KeyError):  # of a user without a name; an empty HOME is no root folder
        home = Path(environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir)

    def folder(variable: str, *default: str) -> Path:
        return Path(environ[variable]) if environ.get(variable) else home.joinpath(*default)

    def shared(variable: str, default: Path) -> Path:
        """Return a folder that other programs use, read as Hugging Face's client reads it: with $VARIABLES."""
        named = str(expand_home(environ.get(variable) or default))
        return Path(re.sub(r"\$(\w+|\{[^}]*\})", lambda found: environ.get(found[1].strip("{}"), found[0]), named))

    hf_home = shared("HF_HOME", folder("XDG_CACHE_HOME", ".cache") / "huggingface")
    hf_cache = shared("HF_HUB_CACHE", shared("HUGGINGFACE_HUB_CACHE", hf_home / "hub"))  # the second is the older name
    if environ.get("MLXMTP_HOME"):
        own = expand_home(environ["MLXMTP_HOME"])
        return Places(own / "config.toml", own, hf_cache, own / "cache")
    return Places(
        folder("XDG_CONFIG_HOME", ".config") / "mlxmtp" / "config.toml",
        folder("XDG_DATA_HOME", ".local", "share") / "mlxmtp",
        hf_cache,
        folder("XDG_CACHE_HOME", ".cache") / "mlxmtp",
    )


def _read_toml(path: Path) -> dict[str, Any]:
    """Return what the config file says; a missing file is an empty one."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.is_symlink():
            raise ConfigError(f"{path} is a link to a file that is not there.") from error
        return {}
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
    import tomllib

    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from error


def number_or_text(text: str) -> object:
    """Return the number that a text is, or the text."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text
