"""--keep-cache: keys and values of a conversation in a file beside it, so that reopening a long one reads nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mlxmtp.errors import CacheRefused
from mlxmtp.units import format_bytes

if TYPE_CHECKING:
    from mlxmtp.cli.repl.talk import Talk

_SECONDS = 3.0
"""How long a model may take to hear that its answer is over."""


def take_up(talk: Talk) -> None:
    """Read what was kept for this conversation, once its model is there. A file that will not do is only a remark."""
    path = _path(talk)
    if path is None or not path.is_file():
        return
    try:
        tokens = talk.thread.run(lambda model: model.load_cache(path))
    except CacheRefused as error:
        talk.say(str(error))
        return
    talk.say(f"{tokens:,} tokens of this conversation are in memory again.")


def keep(talk: Talk) -> None:
    """Write what the model holds of this conversation, at its end. Ctrl-C leaves the file before it as it was."""
    path = _path(talk)
    if path is None or talk.thread.model is None or not talk.conversation.exchanges:
        return
    if talk.met is not talk.conversation:  # only looked at: what is kept already is better
        return
    talk.thread.stop()
    if not talk.thread.idle(_SECONDS):  # Ctrl+C after Ctrl+C has ended the conversation, not the model
        talk.say("The model does not react: keys and values were not kept.")
        return
    from mlxmtp.engine import kv_file

    talk.out.progress("keeping keys and values")
    try:
        size = talk.thread.run(lambda model: model.save_cache(path))
        kv_file.sweep(path.parent)
    except ValueError:  # nothing was read: the file before it, if there is one, is better
        talk.out.clear_progress()
        return
    except (OSError, RuntimeError) as error:  # MLX tells of a full disk by the latter
        reason = error.strerror if isinstance(error, OSError) else None
        talk.complain(CacheRefused(f"Keys and values were not kept: {reason or error}."))
        return
    except KeyboardInterrupt:  # the thread that writes ends with the process, wherever it is
        kv_file.unfinished(path).unlink(missing_ok=True)
        raise
    talk.out.clear_progress()
    talk.say(f"Kept keys and values ({format_bytes(size)}): {path}")


def _path(talk: Talk) -> Path | None:
    from mlxmtp.chat.sessions import CACHE_SUFFIX

    session = talk.conversation.session
    return None if session is None else talk.loaded.places.sessions / f"{session}{CACHE_SUFFIX}"
