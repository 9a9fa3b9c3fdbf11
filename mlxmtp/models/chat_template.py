"""The text side of a checkpoint as far as files tell: its tokenizer and the places of its chat template."""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from mlxmtp.errors import LoadError
from mlxmtp.models.safetensors import advice, named

TOKENIZER = "tokenizer.json"
_SETTINGS = "tokenizer_config.json"
_PLACES = (
    "chat_template.jinja", _SETTINGS, "chat_template.json",
    "additional_chat_templates/default.jinja", "additional_chat_templates/tool_use.jinja",
)  # fmt: skip

Read = Callable[[str], bytes | None]
"""Returns the bytes of a checkpoint's file, None for one that is not there."""


def find_template(read: Read, origin: object) -> str:
    """Return a checkpoint's chat template. Raises LoadError, which names ``origin``, where no text is one."""
    for name in _PLACES:
        if (content := read(name)) is None:
            continue
        try:
            text = content.decode("utf-8-sig")
            source = text if name.endswith(".jinja") else _default(json.loads(text))
        except UnicodeDecodeError:
            said = f"{named(origin, name)} is no UTF-8. Save it as UTF-8, or take another checkpoint."
            raise LoadError(said) from None
        except (ValueError, RecursionError) as error:
            raise LoadError(f"{named(origin, name)} cannot be read ({error}). {advice(origin)}") from None
        if source is not None and not source.strip():
            raise LoadError(f"The chat template of {origin} ({name}) is empty. Take another checkpoint.")
        if source is not None:
            return source
    raise LoadError(
        f"{origin} has no chat template, so it is a base model, which continues texts and answers nothing. "
        "Take the instruction-tuned one: its name ends in -it."
    )


def _default(table: Any) -> str | None:
    """Return the template in a JSON file: alone, or the default (else the only one) of several with names."""
    value = table.get("chat_template") if isinstance(table, Mapping) else None
    if isinstance(value, list):
        value = {str(one.get("name")): one.get("template") for one in value if isinstance(one, Mapping)}
    if isinstance(value, Mapping):
        value = value.get("default", next(iter(value.values()), None) if len(value) == 1 else None)
    return value if isinstance(value, str) else None


def read_from(folder: Path) -> Read:
    """Return the reader of a folder's files. It raises LoadError for a file that is there and cannot be read."""

    def read(name: str) -> bytes | None:
        try:
            return (folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise LoadError(f"{folder / name} cannot be read ({error.strerror or error}).") from None

    return read


def read_settings(read: Read, origin: object) -> dict[str, Any]:
    """Return tokenizer_config.json, empty where there is none. Raises LoadError, which names ``origin``."""
    try:
        value = json.loads(read(_SETTINGS) or b"{}")
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{named(origin, _SETTINGS)} cannot be read ({error}). {advice(origin)}") from None
    return value if isinstance(value, dict) else {}


def check_text(present: Collection[str], read: Read, origin: object) -> None:
    """Raise LoadError if a checkpoint of such files has no tokenizer or no chat template, and so cannot answer.

    Whether the two can be used is known to those who read them (``engine.tokenizer.check_text_side``).
    """
    if TOKENIZER not in present:
        raise LoadError(no_tokenizer(origin))
    read_settings(read, origin)
    find_template(read, origin)


def no_tokenizer(origin: object) -> str:
    """Return the sentence for a checkpoint without a tokenizer."""
    return f"{origin} has no {TOKENIZER}, so it cannot read or write text. Put one beside its weights, or take another."
