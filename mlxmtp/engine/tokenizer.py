"""Messages to prompt and token ids to text, by the files of a checkpoint: tokenizer.json and its chat template."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mlxmtp.engine.events import CLOSE, OPEN
from mlxmtp.engine.media import SPELLINGS, Marks, expanded, media_in, with_times
from mlxmtp.errors import LoadError, MlxmtpError
from mlxmtp.models.chat_template import TOKENIZER, find_template, no_tokenizer, read_from, read_settings
from mlxmtp.models.safetensors import advice, named, refuse_pointer

if TYPE_CHECKING:
    import tokenizers
    from jinja2 import Template

    from mlxmtp.models.config import ModelConfig

Message = Mapping[str, Any]  # "role" and "content"; templates may read further keys
Tool = Mapping[str, Any]  # the declaration of a function in OpenAI's form

_TURN = "<|turn>"
_SUBWORD = b'"continuing_subword_prefix"'
_WITH_PREFIX = re.compile(_SUBWORD + rb'\s*:\s*"[^"]')
_SPACE = "\u2581"
_SURROGATE = re.compile("[\ud800-\udfff]")
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")
_VISIBLE = frozenset({OPEN, CLOSE, "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>'})
"""Special tokens that carry meaning for the reader of an answer; all others never come out as text."""
_FORMAT = frozenset(
    {*_VISIBLE, "<bos>", "<eos>", "<pad>", _TURN, "<turn|>", "<|tool>", "<tool|>", "<|think|>"}.union(
        *SPELLINGS.values()
    )
)
"""Tokens of the turn format, special whatever a checkpoint's flags say."""
_FAULTS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)  # of a template's own code
_ENDS = ("<turn|>", "<|tool_response>")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as text and as token ids."""

    text: str
    ids: list[int]


class Tokenizer:
    """The text side of a checkpoint. Nothing in it changes once it is loaded: threads may share one."""

    estimates: ClassVar[bool] = False
    """True for one that knows only about how many tokens a text has."""

    def __init__(
        self, folder: Path, origin: Path | str, inner: tokenizers.Tokenizer, settings: Mapping[str, Any]
    ) -> None:
        self._folder, self._origin, self._inner, self._settings = folder, origin, inner, settings
        added = inner.get_added_tokens_decoder()
        special = (one for one in added.items() if one[1].special or one[1].content in _FORMAT)
        self._specials = {token.content: number for number, token in special}
        self._hidden = frozenset(number for content, number in self._specials.items() if content not in _VISIBLE)
        # Finds whatever may be a special token in one pass: vocabularies have thousands of them, most like `<this>`.
        bracketed = re.compile("<[^<>]+>")
        others = sorted((mark for mark in self._specials if not bracketed.fullmatch(mark)), key=len, reverse=True)
        self._marks = re.compile("|".join([*map(re.escape, others), bracketed.pattern]))

    @classmethod
    def load(cls, folder: Path, origin: str | None = None) -> Tokenizer:
        """Read tokenizer.json (and tokenizer_config.json where there is one). Raises LoadError.

        `origin` is the repository that errors name, for a folder that is its snapshot.
        """
        read, whose = read_from(folder), origin or folder
        if (content := read(TOKENIZER)) is None:
            raise LoadError(no_tokenizer(whose))
        file = folder / TOKENIZER if origin is None else named(origin, TOKENIZER)
        return cls(folder, whose, _read_tokenizer(content, file), read_settings(read, whose))

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
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer: the tokenizer's own end, and the turn format's."""
        ends = (self._named("eos_token"), *_ENDS)
        return frozenset(number for mark in ends if (number := self._inner.token_to_id(mark)) is not None)

    @property
    def declares_tools(self) -> bool:
        """True if the chat template writes declarations of tools."""
        return _declares_tools(self._template_source())

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

        Special tokens come from the template alone: what a user, a file, a tool or an answer spells like one, in any
        field, is encoded as plain text, so that no material can end a turn or open a thought. Pictures and sounds in
        contents must be prepared (`engine/media.py`) and have negative ids. Raises MlxmtpError.
        """
        if not messages:
            raise MlxmtpError("There is no message to answer.")
        cover = Cover([messages, tools])
        covered, declared = [self._covered(one, cover) for one in messages], self._covered_value(tools, cover)
        media = media_in(messages)
        text = with_times(self.render(covered, think=think, tools=declared), media)
        prompt = self._uncovered(text, cover)
        if not prompt.ids:
            raise MlxmtpError(f"The chat template of {self._folder} makes an empty prompt of this conversation.")
        if media:
            marks = {kind: Marks(*map(self.special_id, spelled)) for kind, spelled in SPELLINGS.items()}
            try:
                return Prompt(prompt.text, expanded(prompt.ids, [part for one in media for part in one.placed], marks))
            except ValueError as error:
                raise MlxmtpError(f"The chat template of {self._folder} shows no images: {error}.") from error
        return prompt

    def prompt_ids(self, messages: Sequence[Message], *, think: bool = False, tools: Sequence[Tool] = ()) -> list[int]:
        """Return the token ids of `prompt`."""
        return self.prompt(messages, think=think, tools=tools).ids

    def continued_ids(
        self, messages: Sequence[Message], *, think: bool = False, tools: Sequence[Tool] = ()
    ) -> tuple[list[int], list[int]]:
        """Return the token ids of a conversation whose last message, the assistant's, is not finished yet: up to there,
        and those of that message."""
        *before, begun = messages
        cover = Cover(begun)
        content = self._covered(begun, cover).get("content") or ""
        if not isinstance(content, str):
            content = "".join(part["text"] for part in content if part.get("type") == "text")
        said = content.lstrip()
        return self.prompt_ids(before, think=think, tools=tools), self._uncovered(said, cover).ids

    def lasting(
        self, messages: Sequence[Message], prompt_ids: Sequence[int], *, think: bool = False, tools: Sequence[Tool] = ()
    ) -> int:
        """Return how many of `prompt_ids`, those of `messages`, the next turn's prompt begins with; thoughts go."""
        answer, cover = {"role": "assistant", "content": "."}, Cover([messages, tools])
        start = None
        if not media_in(messages):
            covered, declared = [self._covered(one, cover) for one in messages], self._covered_value(tools, cover)
            now, then = (self.render(one, think=think, tools=declared) for one in (covered, [*covered, answer]))
            start = self._last_mark(now[: _same(now, then)])
        if start is None:
            return _same(prompt_ids, self.prompt_ids([*messages, answer], think=think, tools=tools))
        # Marks cut a text for the encoder, so it is enough to encode what follows the last one that both have.
        ends = [self._uncovered(text[start:], cover).ids for text in (now, then)]
        return len(prompt_ids) - len(ends[0]) + _same(*ends)

    def render(self, messages: Sequence[Message], *, think: bool = False, tools: Sequence[Tool] = ()) -> str:
        """Return the prompt as text, by the checkpoint's own chat template. Raises LoadError if that fails."""
        from jinja2 import TemplateError

        template, given = self._template, [dict(message) for message in messages]
        named = {name: self._named(name) for name in ("bos_token", "eos_token", "pad_token")}
        try:
            return template.render(
                messages=given, tools=[*tools] or None, add_generation_prompt=True, enable_thinking=think, **named
            )
        except (TemplateError, *_FAULTS) as error:
            said = str(error).rstrip(".") or type(error).__name__
            raise MlxmtpError(f"The chat template of {self._folder} refuses this conversation: {said}.") from error

    def _last_mark(self, covered: str) -> int | None:
        """Return where the last special token of a rendered text begins; material has none that begins with `<`."""
        found = (one for one in self._marks.finditer(covered) if one[0] in self._specials and one[0][0] == "<")
        return max((one.start() for one in found), default=None)

    def check_template(self) -> None:
        """Raise LoadError if there is no chat template, or none that can be read."""
        _ = self._template

    def opens_in_thought(self, prompt: Sequence[int]) -> bool:
        """Return true if `prompt` ends inside a thought of the turn being written; a user may quote the marks."""
        turn, opening, closing = (self.special_id(mark) for mark in (_TURN, OPEN, CLOSE))
        for token in reversed(prompt):
            if token in (turn, closing):
                return False
            if token == opening:
                return opening is not None
        return False

    def _covered(self, message: Message, cover: Cover) -> dict[str, Any]:
        """Return a message whose strings, in every field, hold nothing that can become a special token.

        Marks with a meaning for the reader of an answer stay in answers, where the model may have written them.
        """
        meant = _VISIBLE if message.get("role") in ("assistant", "model") else frozenset()
        return {
            key: self._covered_value(value, cover, meant if key == "content" else ()) for key, value in message.items()
        }

    def _covered_value(self, value: Any, cover: Cover, meant: Collection[str] = ()) -> Any:
        if isinstance(value, Mapping):
            pairs = value.items()
            return {self._covered_value(key, cover): self._covered_value(one, cover, meant) for key, one in pairs}
        if isinstance(value, list | tuple):
            return [self._covered_value(one, cover, meant) for one in value]
        return cover.put_on(value, self._marks, self._specials, meant) if isinstance(value, str) else value

    def _uncovered(self, text: str, cover: Cover) -> Prompt:
        """Return the prompt that a text means which was rendered from covered messages."""
        text, plain = cover.taken_off(text, self._marks, self._specials)
        ids: list[int] = []
        end = 0
        for start, stop in plain:
            ids += self.encode(text[end:start]) + self._plain.encode(text[start:stop], add_special_tokens=False).ids
            end = stop
        return Prompt(text, ids + self.encode(text[end:]))

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """A second encoder on the same vocabulary, to which special tokens are ordinary text."""
        import tokenizers

        plain = tokenizers.Tokenizer(self._inner.model)
        if self._inner.normalizer is not None:
            plain.normalizer = self._inner.normalizer
        if self._inner.pre_tokenizer is not None:
            plain.pre_tokenizer = self._inner.pre_tokenizer
        added = self._inner.get_added_tokens_decoder().values()
        plain.add_tokens([token for token in added if token.content not in self._specials])
        return plain

    @cached_property
    def _template(self) -> Template:
        from mlxmtp.engine.template import compile_template

        return compile_template(self._template_source(), self._origin)

    def _template_source(self) -> str:
        return find_template(read_from(self._folder), self._origin)

    def _named(self, name: str) -> str:
        """Return the spelling of `bos_token` and the like, which templates print."""
        value = self._settings.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        return content if isinstance(content, str) else f"<{name.removesuffix('_token')}>"


def stop_ids(config: ModelConfig, tokenizer: Tokenizer | None) -> frozenset[int]:
    """Return the tokens that end an answer: those of the checkpoint's configuration and of its tokenizer."""
    return config.stop_ids | (frozenset() if tokenizer is None else tokenizer.end_ids)


def declares_tools(folder: Path) -> bool:
    """Return whether the chat template of a folder writes declarations of tools. Raises LoadError if there is none."""
    return _declares_tools(find_template(read_from(folder), folder))


def _declares_tools(template: str) -> bool:
    return re.search(r"\btools\b", template) is not None


def check_text_side(folder: Path, origin: str | None = None) -> None:
    """Raise LoadError if the tokenizer or the chat template of a folder cannot be used, in the words of an answer's.

    That takes a second for a vocabulary of Gemma's size. `origin` as in `Tokenizer.load`.
    """
    Tokenizer.load(folder, origin).check_template()


def _read_tokenizer(content: bytes, file: Path | str) -> tokenizers.Tokenizer:
    """Read tokenizer.json. Raises LoadError for one that the library refuses, or would not survive."""
    import tokenizers

    refuse_pointer(content, file)
    at = content.find(_SUBWORD)
    while at >= 0:  # the library reads beyond the end of tokens that are shorter than such a prefix
        if _WITH_PREFIX.match(content, at):
            raise LoadError(f"{file} marks parts of words, as no Gemma 4 does. Take the original's tokenizer.json.")
        at = content.find(_SUBWORD, at + 1)
    try:
        inner = tokenizers.Tokenizer.from_buffer(content)
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":  # pyo3's, which is no Exception
            raise LoadError(f"{file} is damaged ({error}). {advice(file)}") from error
        raise
    inner.no_truncation()  # training saves what it was cut and filled to, and the library would go on so
    inner.no_padding()
    return inner


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


class Cover:
    """Characters that stand for `<` and `>` of the material while a template runs.

    Whatever a template joins of the material, or leaves after cutting, has no mark in it then. Marks that are not in
    angle brackets get a third character in front.
    """

    def __init__(self, material: Any) -> None:
        used = set().union(*map(set, _strings(material)))
        private = chain(range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
        free = (character for character in map(chr, private) if character not in used)
        self._open, self._close, self._other = islice(free, 3)

    def put_on(self, text: str, marks: re.Pattern[str], specials: Collection[str], meant: Collection[str]) -> str:
        """Return a text without special tokens but for those that are `meant`."""
        parts, end = [], 0
        for found in marks.finditer(text):
            if found[0] in meant or (found[0] in specials and found[0][0] != "<"):
                other = "" if found[0] in meant else self._other
                parts += [self._bare(text[end : found.start()]), other, found[0]]
                end = found.end()
        return "".join([*parts, self._bare(text[end:])])

    def _bare(self, text: str) -> str:
        return text.replace("<", self._open).replace(">", self._close)

    def taken_off(
        self, text: str, marks: re.Pattern[str], specials: Collection[str]
    ) -> tuple[str, list[tuple[int, int]]]:
        """Return the text that was meant, and where in it stand special tokens that are material."""
        others = [found.start() for found in re.finditer(self._other, text)]
        places = {place - i for i, place in enumerate(others)}
        text = text.replace(self._other, "")
        meant = text.replace(self._open, "<").replace(self._close, ">")
        covered = {self._open, self._close}
        return meant, [
            found.span()
            for found in marks.finditer(meant)
            if found[0] in specials and (found.start() in places or covered & set(text[found.start() : found.end()]))
        ]


def _same(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return the length of the common beginning of two texts or lists."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def _strings(value: Any) -> Iterator[str]:
    """Yield every string in a value, those of its keys as well."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings([*value, *value.values()])
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _strings(one)
