"""The surroundings of the process as its environment tells them: terminal, other programs' folders, a key."""

import os
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from mlxmtp.errors import MlxmtpError

SERVER_KEY = "MLXMTP_API_KEY"  # the variable with the key of our own servers
Pictures = Literal["", "kitty", "iterm2"]
"""The protocol by which a terminal draws pictures; empty for none."""

_NAMED = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def dumb_terminal(environ: Mapping[str, str] = os.environ) -> bool:
    """Return True if the terminal knows no escape codes."""
    return environ.get("TERM") == "dumb"


def in_tmux(environ: Mapping[str, str] = os.environ) -> bool:
    """Return True in a window of tmux."""
    return bool(environ.get("TMUX"))


def over_ssh(environ: Mapping[str, str] = os.environ) -> bool:
    """Return True if the person sits at another machine."""
    return bool(environ.get("SSH_CONNECTION"))


def draws_pictures(environ: Mapping[str, str] = os.environ) -> Pictures:
    """Return how the terminal draws pictures, if it says that it does; tmux and screen keep them from it."""
    if in_tmux(environ) or environ.get("STY"):
        return ""
    program = environ.get("TERM_PROGRAM", "")
    if environ.get("TERM") in ("xterm-kitty", "xterm-ghostty") or program == "ghostty":
        return "kitty"
    iterm2 = program in ("iTerm.app", "WezTerm") or environ.get("LC_TERMINAL") == "iTerm2"  # this one passes ssh
    return "iterm2" if iterm2 else ""


def server_key(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the key that clients of the server must send. It is no setting, so that nothing shows it."""
    return key_in(SERVER_KEY, environ)


def key_in(variable: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the key that a variable holds, by the name that a config file gives; None if it is not set."""
    return environ.get(variable, "").strip() or None


def client_folder(variable: str, below_home: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Return another program's folder: where its variable says, else below the home folder."""
    return Path(environ.get(variable) or Path.home() / below_home)


def user_config(variable: str, name: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Return another program's folder: where its variable says, else where this system keeps such folders."""
    mac, xdg = Path.home() / "Library" / "Application Support", client_folder("XDG_CONFIG_HOME", ".config", environ)
    usual = mac if sys.platform == "darwin" else xdg
    return Path(environ.get(variable) or usual / name)


def editor(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the words of the command that edits a text, as people have set it. Raises MlxmtpError."""
    command = environ.get("VISUAL", "").strip() or environ.get("EDITOR", "").strip() or "vi"
    try:
        return shlex.split(command)
    except ValueError:
        raise MlxmtpError(f"The editor '{command}' lacks a quotation mark: set VISUAL or EDITOR.") from None


def git_environ(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment for a git that only looks.

    Without a hook's variables, with which it would answer for the hook's repository; and it fetches nothing: a
    repository may say that a file is missing, and by which program it is to be had.
    """
    of_a_hook = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX", "GIT_NAMESPACE"}
    kept = {name: value for name, value in environ.items() if name not in of_a_hook}
    return {**kept, "GIT_ALLOW_PROTOCOL": "none", "GIT_NO_LAZY_FETCH": "1"}


def with_variables(text: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return a text with the value of NAME in place of each `${NAME}`, or of `${NAME:-other}` what stands there.

    Raises KeyError for one that is not set.
    """
    return _NAMED.sub(lambda found: environ[found[1]] if found[2] is None else environ.get(found[1]) or found[2], text)
