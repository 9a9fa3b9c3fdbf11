"""Messages to prompt and token ids to text, by the files of a checkpoint: tokenizer.json and its chat template."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxmtp.engine.events import CLOSE, OPEN
from mlxmtp.errors import LoadError, MlxmtpError

if TYPE_CHECKING:
    import tokenizers
    from jinja2 import Template

Message = Mapping[str, Any]  # "role" and "content"; templates may read further keys
Tool = Mapping[str, Any]  # the declaration of a function in OpenAI's form

_TURN = "<|turn>"
_SPACE = "\u2581"
_SURROGATE = re.compile("[\ud800-\udfff]")
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")
_VISIBLE = frozenset({OPEN, CLOSE, "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>'})
"""Special tokens that carry meaning for the reader of an answer; all others never come out as text."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as text and as token ids."""

    text: str
    ids: list[int]


class Tokenizer:
    """The text side of a checkpoint. Nothing in it changes once it is loaded: threads may share one."""

    def __init__(self, folder: Path, inner: tokenizers.Tokenizer, settings: Mapping[str, Any]) -> None:
        self._folder, self._inner, self._settings = folder, inner, settings
        added = inner.get_added_tokens_decoder()
        self._specials = {token.content: number for number, token in added.items() if token.special}
        self._hidden = frozenset(number for content, number in self._specials.items() if content not in _VISIBLE)
        # Finds whatever may be a special token in one pass: vocabularies have thousands of them, most like `<this>`.
        bracketed = re.compile("<[^<>]+>")
        others = sorted((mark for mark in self._specials if not bracketed.fullmatch(mark)), key=len, reverse=True)
        self._marks = re.compile("|".join([*map(re.escape, others), bracketed.pattern]))

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read tokenizer.json (and tokenizer_config.json where there is one). Raises LoadError."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            told = f"{folder} has no tokenizer.json, so it cannot read or write text: download the model again."
            raise LoadError(told)
        import tokenizers

        try:
            inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            raise LoadError(f"{path} is damaged ({error}): download the model again.") from error
        settings = folder / "tokenizer_config.json"
        try:
            value = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
        except (OSError, ValueError) as error:
            raise LoadError(f"{settings} cannot be read ({error}): download the model again.") from error
        return cls(folder, inner, value if isinstance(value, dict) else {})

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, special tokens spelled in it included; lone surrogates become U+FFFD."""
        if not text.isascii():
            text = _SURROGATE.sub("\ufffd", text)
        return list(self._inner.encode(text, add_special_tokens=False).ids)

    def raw_ids(self, text: str) -> list[int]:
        """Return the ids of a prompt that no template writes: the begin of a text stands before it."""
        begin = self.special_id(self._named("bos_token"))
        ids = self.encode(text)
        return ids if begin is None or ids[:1] == [begin] else [begin, *ids]

    def detokenizer(self) -> Detokenizer:
        """Return a fresh incremental decoder; special tokens without meaning for a reader are left out."""
        return Detokenizer(lambda token: None if token in self._hidden else self._inner.id_to_token(token))

    def special_id(self, content: str) -> int | None:
        """Return the id of a special token by its spelling."""
        return self._specials.get(content)

    @property
    def declares_tools(self) -> bool:
        """True if the chat template writes declarations of tools."""
        return re.search(r"\btools\b", self._template_source()) is not None

    @property
    def special_ids(self) -> frozenset[int]:
        return frozenset(self._specials.values())

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that a token stands for, of a special one its spelling; empty beyond the vocabulary."""
        piece = self._inner.id_to_token(token)
        if piece is None:
            return b""
        byte = _BYTE.fullmatch(piece)
        return bytes.fromhex(byte[1]) if byte else piece.replace(_SPACE, " ").encode("utf-8", "replace")

    def encode_plain(self, text: str) -> list[int]:
        """Return the token ids of `text` without any special token, whatever is spelled in it."""
        return list(self._plain.encode(text, add_special_tokens=False).ids)

    def prompt(self, messages: Sequence[Message], *, think: bool = False, tools: Sequence[Tool] = ()) -> Prompt:
        """Return the prompt that makes the model answer `messages`.

        Special tokens come from the template alone: what a user, a file, a tool or an answer spells so is plain text.
        """
        cover = _unused_character(_texts([messages, tools]))
        covered = [self._covered_message(message, cover) for message in messages]
        return self._uncovered(self.render(covered, think=think, tools=self._covered(tools, cover)), cover)

    def prompt_ids(self, messages: Sequence[Message], *, think: bool = False, tools: Sequence[Tool] = ()) -> list[int]:
        """Return the token ids of `prompt`."""
        return self.prompt(messages, think=think, tools=tools).ids

    def continued_ids(
        self, messages: Sequence[Message], *, think: bool = False, tools: Sequence[Tool] = ()
    ) -> list[int]:
        """Return the token ids of a conversation whose last message, the assistant's, is not finished yet."""
        *before, begun = messages
        cover = _unused_character(_texts(begun))
        said = str(self._covered_message(begun, cover)["content"]).lstrip()
        return self.prompt_ids(before, think=think, tools=tools) + self._uncovered(said, cover).ids

    def lasting(
        self, messages: Sequence[Message], prompt_ids: Sequence[int], *, think: bool = False, tools: Sequence[Tool] = ()
    ) -> int:
        """Return how many of `prompt_ids`, those of `messages`, the next turn's prompt begins with; thoughts go."""
        answered = self.prompt_ids([*messages, {"role": "assistant", "content": "."}], think=think, tools=tools)
        pairs = zip(prompt_ids, answered, strict=False)
        return next((i for i, (now, then) in enumerate(pairs) if now != then), min(len(prompt_ids), len(answered)))

    def render(self, messages: Sequence[Message], *, think: bool = False, tools: Sequence[Tool] = ()) -> str:
        """Return the prompt as text, by the checkpoint's own chat template. Raises LoadError if that fails."""
        from jinja2 import TemplateError

        template, given = self._template, [dict(message) for message in messages]
        named = {name: self._named(name) for name in ("bos_token", "eos_token", "pad_token")}
        try:
            return template.render(
                messages=given, tools=[*tools] or None, add_generation_prompt=True, enable_thinking=think, **named
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise MlxmtpError(f"The chat template of {self._folder} refuses this conversation: {error}.") from error

    def opens_in_thought(self, prompt: Sequence[int]) -> bool:
        """Return true if `prompt` ends inside a thought of the turn being written; a user may quote the marks."""
        turn, opening, closing = (self.special_id(mark) for mark in (_TURN, OPEN, CLOSE))
        for token in reversed(prompt):
            if token in (turn, closing):
                return False
            if token == opening:
                return opening is not None
        return False

    def _covered_message(self, message: Message, cover: str) -> dict[str, Any]:
        """Return `message` as `_covered` does.

        Marks with a meaning for the reader of an answer stay in answers, where the model may have written them.
        """
        covered = {key: self._covered(value, cover) for key, value in message.items()}
        content = message.get("content")
        if isinstance(content, str) and message.get("role") in ("assistant", "model"):
            covered["content"] = self._covered(content, cover, _VISIBLE)
        return covered

    def _covered(self, value: Any, cover: str, meant: frozenset[str] = frozenset()) -> Any:
        """Return `value` with the id of every special token spelled in its texts between two `cover`s."""
        if isinstance(value, Mapping):
            return {self._covered(key, cover): self._covered(one, cover) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self._covered(one, cover) for one in value]
        if not isinstance(value, str):
            return value

        def cover_one(found: re.Match[str]) -> str:
            number = None if found[0] in meant else self._specials.get(found[0])
            return found[0] if number is None else f"{cover}{number}{cover}"

        return self._marks.sub(cover_one, value)

    def _uncovered(self, text: str, cover: str) -> Prompt:
        """Return the prompt that a text means which `_covered` has gone over."""
        spelled = {number: mark for mark, number in self._specials.items()}
        parts = text.split(cover)  # text, id, text, id, … text
        ids: list[int] = []
        for index, part in enumerate(parts):
            if index % 2:
                parts[index] = spelled[int(part)]
                ids += self._plain.encode(parts[index], add_special_tokens=False).ids
            elif part:
                ids += self.encode(part)
        return Prompt("".join(parts), ids)

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """A second encoder on the same vocabulary, to which special tokens are ordinary text."""
        import tokenizers

        plain = tokenizers.Tokenizer(self._inner.model)
        if self._inner.normalizer is not None:
            plain.normalizer = self._inner.normalizer
        if self._inner.pre_tokenizer is not None:
            plain.pre_tokenizer = self._inner.pre_tokenizer
        plain.add_tokens([token for token in self._inner.get_added_tokens_decoder().values() if not token.special])
        return plain

    @cached_property
    def _template(self) -> Template:
        """The chat template in the environment it is written for (transformers' chat_template_utils)."""
        from datetime import datetime

        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise TemplateError(message)

        def to_json(value: object, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
            return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

        extensions = ["jinja2.ext.loopcontrols"]
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        environment.filters["tojson"] = to_json
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            return environment.from_string(self._template_source())
        except TemplateError as error:
            told = f"The chat template of {self._folder} is damaged ({error}): download the model again."
            raise LoadError(told) from error

    def _template_source(self) -> str:
        path = self._folder / "chat_template.jinja"
        if path.is_file():
            return path.read_text(encoding="utf-8")
        source = self._settings.get("chat_template")
        if isinstance(source, list):  # several named ones: an older way of shipping them
            source = next((item["template"] for item in source if item.get("name") == "default"), None)
        if not isinstance(source, str):
            told = f"{self._folder} has no chat template: download the model again, the instruction-tuned one."
            raise LoadError(told)
        return source

    def _named(self, name: str) -> str:
        """Return the spelling of `bos_token` and the like, which templates print."""
        value = self._settings.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        return content if isinstance(content, str) else f"<{name.removesuffix('_token')}>"


class Detokenizer:
    """Incremental decoding that holds back bytes until they make a character; U+FFFD stands for invalid UTF-8."""

    def __init__(self, piece: Callable[[int], str | None]) -> None:
        self._piece = piece
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """Return the text that `token` completes; empty while it only starts a character."""
        piece = self._piece(token)
        if piece is None:  # an id beyond the vocabulary has no spelling
            return self.flush()
        if byte := _BYTE.fullmatch(piece):
            return self._bytes.decode(bytes.fromhex(byte[1]))
        return self.flush() + piece.replace(_SPACE, " ")

    def flush(self) -> str:
        """Return the bytes that waited; a character that was never completed becomes U+FFFD."""
        return self._bytes.decode(b"", final=True)


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts in lists and tables, their keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from (key, *_texts(one))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


def _unused_character(texts: Iterator[str]) -> str:
    """Return a private-use character that occurs in none of `texts`."""
    text = "".join(texts)
    return next(character for character in map(chr, range(0xE000, 0xF900)) if character not in text)
