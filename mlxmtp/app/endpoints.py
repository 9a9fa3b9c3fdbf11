"""Servers that answer in place of a model here: by address, or by the name of an `[endpoint.NAME]` in the config."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlxmtp.environment import SERVER_KEY, key_in
from mlxmtp.errors import ConfigError
from mlxmtp.limits import TOKEN_COUNT, Range
from mlxmtp.settings import Loaded, Rule, name_of, number, read_table, setting, texts

if TYPE_CHECKING:
    from mlxmtp.app.remote import Remote

AUTO = "auto"  # the name of the router: `-m auto`
ATTACHMENTS, RESULTS = "attachments", "tool results"
_LOOPBACK = re.compile(r"localhost|127(\.\d{1,3}){3}|::1")


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine; a tunnel may begin there."""
    return _LOOPBACK.fullmatch(host) is not None


def _sends(value: object) -> tuple[str, ...] | None:
    found = () if value == [] else texts(value)
    return found if found is not None and {*found} <= {ATTACHMENTS, RESULTS} else None


_SENDS = Rule(f"a list of '{ATTACHMENTS}' and '{RESULTS}'", list[str], _sends)


# fmt: off
@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server that speaks OpenAI's protocol. The fields from `url` on are the keys of its table."""

    url: str | None = setting(
        "", name_of("a server"), "Address, with or without /v1.", "must be there")
    model: str | None = setting(
        "", name_of("a model"), "Name of the model there.", "the server's first")
    key_env: str | None = setting(
        "", name_of("an environment variable"), "NAME of the variable that holds the key; never the key.", "none")
    timeout: float | None = setting(
        "", number(Range(0, above=True)), "Seconds until its first token.", "600; in a router 30")
    context: int | None = setting(
        "", number(TOKEN_COUNT), "Tokens that it takes.", "what the server says, else 32768")
    sends: tuple[str, ...] | None = setting(
        "", _SENDS, "What a router may send besides questions.", "nothing else")
    name: str = ""  # in the config; empty for an address that was given directly
    configured: bool = False  # such an address is from the config or the environment, as the key is

    @property
    def title(self) -> str:
        """Its name in the config, else its address."""
        return self.name or self.url or ""

    def remote(self, timeout: float) -> Remote:
        """Return the server, of which an answer must begin within `timeout` seconds unless the config says another
        time. Raises UsageError for what is no address, ConfigError for a key that is not there.

        A key goes only where its owner has said: that of `key_env` to this address, that of our own servers to this
        machine and to an address that is `configured`.
        """
        from mlxmtp.app.remote import Remote  # a client of HTTP, which models here do without

        variable, first_byte = self.key_env or SERVER_KEY, self.timeout or timeout
        key = key_in(variable)
        if self.key_env is not None and key is None:
            raise ConfigError(f"Endpoint '{self.name}' takes its key from {variable}, which is not set: export it.")
        remote = Remote(self.url or "", key, variable, first_byte)
        if self.key_env is None and not (self.configured or is_loopback(remote.host)):
            remote.forget_key()
        return remote
# fmt: on


def endpoints_of(loaded: Loaded) -> dict[str, Endpoint]:
    """Return the endpoints of the config by name. Raises ConfigError."""
    return {name: _endpoint(loaded, name) for name in loaded.endpoints}


def others_of(loaded: Loaded) -> list[str]:
    """Return the names that -m takes besides those of models: endpoints and, where there is one, the router."""
    return [*loaded.endpoints, *([AUTO] if loaded.router else [])]


def endpoint_named(loaded: Loaded, name: str) -> Endpoint | None:
    """Return the endpoint that a name of the config or an address means; None for anything else. Raises ConfigError."""
    if name in loaded.endpoints:
        return _endpoint(loaded, name)
    return Endpoint(url=name) if name.startswith(("http://", "https://")) else None


def endpoint_of(loaded: Loaded) -> Endpoint | None:
    """Return the endpoint that the settings ask, None for models here. Raises ConfigError.

    `--url` takes an address or a name, and a model named beside it on the command line is one of that server. Where
    the address is not from the command line, a server or the router named there goes before it. A session's model
    counts as typed; it may be a name of the config, and else is one of the server, whatever it looks like.
    """
    settings, origin, others = loaded.settings, loaded.origins.get("model"), others_of(loaded)
    of_server = origin == "session" and settings.model not in others
    named = None if settings.model is None or of_server else endpoint_named(loaded, settings.model)
    typed = origin in ("flag", "session") and loaded.origins.get("url") != "flag"
    if settings.url is not None and not (typed and (named is not None or settings.model in others)):
        found = endpoint_named(loaded, settings.url) or Endpoint(url=settings.url)
        if settings.model is not None and (origin == "flag" or of_server):
            found = replace(found, model=settings.model)
        return _with_origin(found, loaded.origins.get("url"))
    return None if named is None else _with_origin(named, origin)


def with_model(loaded: Loaded, model: str, origin: str) -> Loaded:
    """Return settings with another model, and where its name is from: a key goes to configured addresses only."""
    settings = replace(loaded.settings, model=model)
    return replace(loaded, settings=settings, origins={**loaded.origins, "model": origin})


def without_url(loaded: Loaded) -> Loaded:
    """Return settings for a command to which `url` does not belong: its models are those that it names."""
    return replace(loaded, settings=replace(loaded.settings, url=None))


def _with_origin(found: Endpoint, origin: str | None) -> Endpoint:
    return replace(found, configured=not found.name and origin in ("environment", "config file"))


def _endpoint(loaded: Loaded, name: str) -> Endpoint:
    where = f"[endpoint.{name}] in {loaded.places.config}"
    said = loaded.endpoints[name]
    if isinstance(said, dict) and {"key", "api_key", "api-key", "token"} & said.keys():
        raise ConfigError(f"{where} holds a key: put it into an environment variable, and its name into key_env.")
    if name == AUTO:
        raise ConfigError(f"{where}: '{AUTO}' is the router's name, so an endpoint needs another one.")
    found = read_table(Endpoint, said, where)
    if found.url is None:
        raise ConfigError(f'{where} needs the server\'s address: url = "https://gpu.example.org/v1".')
    return replace(found, name=name)
