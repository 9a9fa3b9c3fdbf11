"""Every error a user can meet; its message is one sentence with the cause and the next step.

    MlxmtpError        1   the base: something went wrong and we know what
    ├── UsageError     2   the request itself cannot be carried out (flags, files, nothing to ask)
    ├── ConfigError    2   a value in config.toml or the environment is wrong
    ├── ContextOverflow 2  the prompt is longer than the model's context
    ├── ModelNotFound  3   the model is not on this machine
    ├── LoadError      1   the files are here but cannot be used
    ├── TooLarge       1   the model does not fit this machine's memory
    ├── DeviceFailed   1   MLX could not compute; what it had read is given up
    ├── SessionError   1   a saved conversation cannot be read
    │   └── SessionInUse   another window has it open
    ├── ConversionError 1  the weights could not be converted or written
    ├── EndpointFailed 1   a server elsewhere gave no answer, or only half of one
    ├── CacheRefused   1   stored keys and values do not serve; the text is read again
    └── DownloadError  1   the hub, the network or the disk did not give what a download needs

`exit_code` is what a process ends with; `cli/app.py` is the only place that turns errors into exits.
"""

import re
from errno import ENOSPC

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class MlxmtpError(Exception):
    """Base of all errors raised on purpose by this package. Control characters in a name are shown as escapes."""

    exit_code: int = 1

    def __init__(self, message: object = "") -> None:
        super().__init__(_visible(str(message)))


class UsageError(MlxmtpError):
    """The request cannot be carried out as given."""

    exit_code = 2


class ConfigError(MlxmtpError):
    """A value in the config file or the environment is wrong."""

    exit_code = 2


class ContextOverflow(MlxmtpError):
    """The prompt does not fit the model's context."""

    exit_code = 2


class ModelNotFound(MlxmtpError):
    """The model is not on this machine."""

    exit_code = 3


class LoadError(MlxmtpError):
    """A model's files are missing, damaged, or do not belong together."""


class DownloadError(MlxmtpError):
    """A download could not be started or finished; what has arrived is kept."""


class SessionError(MlxmtpError):
    """A file is not a session that this version can read."""


class SessionInUse(SessionError):
    """Another window has the session open."""


class ConversionError(MlxmtpError):
    """A conversion could not be finished; what has been written is kept."""


class TooLarge(MlxmtpError):
    """The model does not fit this machine's memory."""


class DeviceFailed(MlxmtpError, RuntimeError):
    """MLX could not compute, mostly for want of memory. What it leaves behind cannot be trusted and is forgotten."""


class EndpointFailed(MlxmtpError):
    """A server elsewhere did not answer. `reason`: why, in a word or two for a line about another one that did.

    `counts`: it is the server's fault and not that of the request, so a circuit breaker counts it; `retry_after`:
    seconds that the server asks to be left alone for.
    """

    def __init__(self, message: object, reason: str, *, counts: bool = True, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.reason, self.counts, self.retry_after = _visible(reason), counts, retry_after


class CacheRefused(MlxmtpError):
    """Stored keys and values are damaged or another model's. Nothing is lost: the text is read again."""


def sentence(error: Exception) -> str:
    """Return what a person is told: our errors as they are, the system's with its file, others with their kind."""
    if isinstance(error, MlxmtpError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{_visible(str(error.filename))}: {error.strerror}. Check the file, its folder and the disk."
    if isinstance(error, OSError) and error.errno == ENOSPC:
        return f"{error.strerror}: make room, or write to another place."
    return f"Unexpected {type(error).__name__}: {error}. This is a bug in mlxmtp; --debug shows where."


def as_exception(error: BaseException) -> Exception:
    """Return an error as an Exception: a panic in a library written in Rust is none, and must not end a thread."""
    return error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")


def _visible(text: str) -> str:
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
