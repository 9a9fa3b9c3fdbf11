"""The text side of a checkpoint as far as files tell: its tokenizer and the places of its chat template."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlxmtp.errors import LoadError
from mlxmtp.models.safetensors import AGAIN

TOKENIZER = "tokenizer.json"
_PLACES = (
    "chat_template.jinja", "tokenizer_config.json", "chat_template.json",
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
            raise LoadError(f"{name} of {origin} is no UTF-8. Save it as UTF-8, or take another checkpoint.") from None
        except (ValueError, RecursionError) as error:
            raise LoadError(f"{name} of {origin} cannot be read ({error}). {AGAIN}") from None
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


def check_text(folder: Path) -> None:
    """Raise LoadError if a folder has no tokenizer or no chat template, and so cannot answer."""
    if not (folder / TOKENIZER).is_file():
        raise LoadError(no_tokenizer(folder))
    find_template(read_from(folder), folder)


def no_tokenizer(origin: object) -> str:
    """Return the sentence for a checkpoint without a tokenizer."""
    return f"{origin} has no {TOKENIZER}, so it cannot read or write text. Put one beside its weights, or take another."
