"""Messages to prompt and token ids to text, by the files of a checkpoint: tokenizer.json and its chat template.

Built on the `tokenizers` library and jinja2 alone: importing transformers for this would take over a second.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxmtp.engine.channels import CLOSE, OPEN
from mlxmtp.errors import LoadError, MlxmtpError

if TYPE_CHECKING:
    import tokenizers
    from jinja2 import Template


_SPACE = "\u2581"


class Detokenizer:
    """Incremental decoding that holds back bytes until they make a character.

    `piece(id)` returns a token's spelling in the vocabulary. Nothing invalid ever shows up except
    where the tokens themselves spell invalid UTF-8: then U+FFFD stands for the broken bytes, as in any decoder.
    """

    def __init__(self, piece: Callable[[int], str | None]) -> None:
        self._piece = piece
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """The text that `token` completes; empty while it only starts a character."""
        piece = self._piece(token)
        if piece is None:  # an id beyond the vocabulary has no spelling
            return self.flush()
        byte = _single_byte(piece)
        if byte is not None:
            return self._bytes.decode(byte)
        return self.flush() + piece.replace(_SPACE, " ")

    def flush(self) -> str:
        """What is still held back; a character that was never completed becomes U+FFFD."""
        return self._bytes.decode(b"", final=True)


def _single_byte(piece: str) -> bytes | None:
    """The byte of a byte token like `<0x0A>`."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        try:
            return bytes([int(piece[3:5], 16)])
        except ValueError:
            return None
    return None


Message = Mapping[str, Any]
"""`{"role": "system" | "user" | "assistant", "content": text}`; templates may read further keys."""

_TURN = "<|turn>"
_SURROGATE = re.compile("[\ud800-\udfff]")
_VISIBLE = frozenset(
    {OPEN, CLOSE, "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>'}
)  # special tokens that carry meaning for the reader of an answer; all others never come out as text


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads, as text and as token ids."""

    text: str
    ids: list[int]


class Tokenizer:
    """The text side of a checkpoint."""

    def __init__(self, folder: Path, inner: tokenizers.Tokenizer, settings: Mapping[str, Any]) -> None:
        self._folder = folder
        self._inner = inner
        self._settings = settings
        self._template: Template | None = None
        added = inner.get_added_tokens_decoder()
        self._specials = {token.content: number for number, token in added.items() if token.special}
        self._marks = _candidates(self._specials)
        self._hidden = frozenset(number for content, number in self._specials.items() if content not in _VISIBLE)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read tokenizer.json (and tokenizer_config.json where there is one). Raises LoadError."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise LoadError(
                f"{folder} has no tokenizer.json, so it cannot read or write text: download the model again."
            )
        import tokenizers

        try:
            inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            raise LoadError(f"{path} is damaged ({error}): download the model again.") from error
        return cls(folder, inner, _read_object(folder / "tokenizer_config.json"))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; special tokens spelled in it become themselves, none is added.

        Lone surrogates, which stand for bytes that were no text, become U+FFFD.
        """
        if not text.isascii():
            text = _SURROGATE.sub("\ufffd", text)
        ids: list[int] = self._inner.encode(text, add_special_tokens=False).ids
        return ids

    def detokenizer(self) -> Detokenizer:
        """A fresh incremental decoder; special tokens without meaning for a reader are left out."""
        return Detokenizer(lambda token: None if token in self._hidden else self._inner.id_to_token(token))

    def special_id(self, content: str) -> int | None:
        """The id of a special token by its spelling."""
        return self._specials.get(content)

    def prompt(self, messages: Sequence[Message], *, think: bool = False) -> Prompt:
        """The prompt that makes the model answer `messages`.

        Special tokens come from the template alone: what a user, a file or an answer spells like one is encoded as
        plain text, so that no material can end a turn or open a thought.
        """
        cover = _unused_character("".join(map(_content, messages)))
        covered = [{**message, "content": self._covered(message, cover)} for message in messages]
        return self._uncovered(self.render(covered, think=think), cover)

    def prompt_ids(self, messages: Sequence[Message], *, think: bool = False) -> list[int]:
        """The token ids of `prompt`."""
        return self.prompt(messages, think=think).ids

    def continued_ids(self, messages: Sequence[Message], *, think: bool = False) -> list[int]:
        """The token ids of a conversation whose last message, the assistant's, is not finished yet."""
        *before, begun = messages
        cover = _unused_character(_content(begun))
        return self.prompt_ids(before, think=think) + self._uncovered(self._covered(begun, cover).lstrip(), cover).ids

    def lasting(self, messages: Sequence[Message], prompt_ids: Sequence[int], *, think: bool = False) -> int:
        """How many of `prompt_ids`, the prompt of `messages`, the next turn's prompt will begin with.

        Templates leave thoughts out of past turns, and some open every answer with an empty one. Whatever this template
        does shows when it renders the conversation with an answer.
        """
        answered = self.prompt_ids([*messages, {"role": "assistant", "content": "."}], think=think)
        pairs = zip(prompt_ids, answered, strict=False)
        return next((i for i, (now, then) in enumerate(pairs) if now != then), min(len(prompt_ids), len(answered)))

    def _covered(self, message: Message, cover: str) -> Any:
        """The content of `message` with the id of every special token that is spelled in it between two `cover`s.

        Those with a meaning for the reader of an answer stay in answers, where the model may have written them.
        """
        content = message.get("content")
        if not isinstance(content, str):
            return content
        meant = _VISIBLE if message.get("role") in ("assistant", "model") else frozenset()

        def cover_one(found: re.Match[str]) -> str:
            number = None if found[0] in meant else self._specials.get(found[0])
            return found[0] if number is None else f"{cover}{number}{cover}"

        return self._marks.sub(cover_one, content)

    def _uncovered(self, text: str, cover: str) -> Prompt:
        """What `_covered` left of a text, and its token ids."""
        spelled = {number: mark for mark, number in self._specials.items()}
        parts = text.split(cover)  # text, id, text, id, … text
        ids: list[int] = []
        for index, part in enumerate(parts):
            if index % 2:
                parts[index] = spelled[int(part)]
                ids += self._encode_spelled(parts[index])
            elif part:
                ids += self.encode(part)
        return Prompt("".join(parts), ids)

    def _encode_spelled(self, mark: str) -> list[int]:
        self._inner.encode_special_tokens = True
        try:
            return self.encode(mark)
        finally:
            self._inner.encode_special_tokens = False

    def render(self, messages: Sequence[Message], *, think: bool = False) -> str:
        """The prompt as text, by the checkpoint's own chat template. Raises LoadError if that fails."""
        from jinja2 import TemplateError

        if self._template is None:
            self._template = _compile(self._template_source(), self._folder)
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=None,
                add_generation_prompt=True,
                enable_thinking=think,
                **self._named_tokens(),
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise MlxmtpError(f"The chat template of {self._folder} refuses this conversation: {error}.") from error

    def opens_in_thought(self, prompt: Sequence[int]) -> bool:
        """Whether the answer to `prompt` begins inside a thought that the template has opened.

        Only the turn being written counts: a user may quote the marks.
        """
        turn, opening, closing = (self.special_id(mark) for mark in (_TURN, OPEN, CLOSE))
        for token in reversed(prompt):
            if token in (turn, closing):
                return False
            if token == opening:
                return opening is not None
        return False

    def _template_source(self) -> str:
        path = self._folder / "chat_template.jinja"
        if path.is_file():
            return path.read_text(encoding="utf-8")
        source = self._settings.get("chat_template")
        if isinstance(source, list):  # several named ones: an older way of shipping them
            source = next((item["template"] for item in source if item.get("name") == "default"), None)
        if not isinstance(source, str):
            raise LoadError(
                f"{self._folder} has no chat template: download the model again, the instruction-tuned one."
            )
        return source

    def _named_tokens(self) -> dict[str, str]:
        """`bos_token` and the like, which templates print."""
        named = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
        for name in named:
            value = self._settings.get(name)
            content = value.get("content") if isinstance(value, dict) else value
            if isinstance(content, str):
                named[name] = content
        return named


def _content(message: Message) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else ""


def _candidates(specials: Iterable[str]) -> re.Pattern[str]:
    """Finds whatever may be one of `specials`, in one pass: vocabularies have thousands of them, most like `<this>`."""
    bracketed = re.compile("<[^<>]+>")
    others = sorted((mark for mark in specials if not bracketed.fullmatch(mark)), key=len, reverse=True)
    return re.compile("|".join([*map(re.escape, others), bracketed.pattern]))


def _unused_character(text: str) -> str:
    """A private-use character that does not occur in `text`."""
    return next(character for character in map(chr, range(0xE000, 0xF900)) if character not in text)


def _compile(source: str, folder: Path) -> Template:
    """The environment in which chat templates are written to run (transformers' chat_template_utils)."""
    from datetime import datetime

    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: object, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise LoadError(f"The chat template of {folder} is damaged ({error}): download the model again.") from error


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} cannot be read ({error}): download the model again.") from error
    return value if isinstance(value, dict) else {}
