"""Texts to measure with: the package's own, people's files, and prompts of a given length."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mlxmtp.bench.suite import PICTURES, SUITES, Text, read_suites, to_length
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.errors import ContextOverflow, UsageError

POCKET = Path(__file__).parents[2] / "assets" / "pocket" / "target"


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.load(POCKET)


def encode(messages):
    return tokenizer().prompt_ids(messages)


def test_every_suite_has_a_handful_of_texts_with_names_of_their_own():
    texts = read_suites(SUITES)
    assert {text.kind for text in texts} == set(SUITES)
    for kind in SUITES:
        assert 4 <= len([text for text in texts if text.kind == kind]) <= 6
    assert len({(text.kind, text.name) for text in texts}) == len(texts)
    assert all(len(text.content) > 60 for text in texts)


def test_material_comes_before_the_instruction_and_a_system_prompt_before_both():
    text = Text("k", "n", "Sum it up.", "A long story.", "Be brief.")
    assert text.content == "A long story.\n\nSum it up."
    seen: list[str] = []

    def encode(messages):
        seen.extend(message["role"] for message in messages)
        return [1]

    text.ids(encode)
    assert seen == ["system", "user"]


def test_peoples_files(tmp_path):
    lines = [{"prompt": "One?"}, {"prompt": "Two?", "name": "second", "kind": "mine", "system": "S", "text": "T"}]
    (tmp_path / "own.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n\n", encoding="utf-8")
    folder = tmp_path / "mails"
    folder.mkdir()
    (folder / "b.txt").write_text("Write to B.\n", encoding="utf-8")
    (folder / "a.md").write_text("Write to A.", encoding="utf-8")
    (folder / "skipped.json").write_text("{}", encoding="utf-8")
    found = read_suites([str(tmp_path / "own.jsonl"), str(folder), "chat"], system="General.")
    assert found[:4] == [
        Text("own", "1", "One?", system="General."),
        Text("mine", "second", "Two?", "T", "S"),
        Text("mails", "a", "Write to A.", system="General."),
        Text("mails", "b", "Write to B.", system="General."),
    ]
    assert read_suites([str(folder / "b.txt")]) == [Text("mails", "b", "Write to B.")]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        ("not json", "line 1 is not JSON"),
        ('{"prompt": "a\u2028b"}\n' + "[" * 100_000, "line 2 is not JSON"),
        ('{"prompt": "ok"}\n[1]', "line 2 has no text under the key prompt"),
        ('{"text": "only"}', "line 1 has no text under the key prompt"),
        ('{"prompt": " "}', "line 1 has no text under the key prompt"),
        ('{"prompt": "x", "temperature": 1}', "unknown key 'temperature'"),
        ('{"prompt": "x", "name": 1}', "must have texts as values"),
        ('{"prompt": "x", "name": "a"}\n{"prompt": "y", "name": "a"}', "Two texts of the suites are called own/a"),
    ],
)
def test_a_file_with_a_mistake_is_refused_with_its_place(tmp_path, content, says):
    path = tmp_path / "own.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=says):
        read_suites([str(path)])


def test_suites_that_are_not_there_or_not_text(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "folder").mkdir()
    for name, says in [
        ("codee", "There is no suite 'codee'"),
        (str(tmp_path / "none.jsonl"), "cannot be read"),
        (str(tmp_path / "bad.txt"), "not UTF-8"),
        (str(tmp_path / "empty.txt"), "is empty"),
        (str(tmp_path / "folder"), "no .txt or .md file"),
    ]:
        with pytest.raises(UsageError, match=says):
            read_suites([name])


@pytest.mark.parametrize("tokens", [24, 64, 300, 1000, 4000])
@pytest.mark.parametrize("kind", SUITES)
def test_a_text_is_brought_to_a_length(kind, tokens):
    texts = read_suites([kind])
    lengths = [len(to_length(text, texts, tokens, encode)) for text in texts]
    assert all(tokens - 4 <= length <= tokens for length in lengths)
    assert sum(length == tokens for length in lengths) >= len(texts) - 1


def test_the_instruction_stays_at_the_end_and_one_text_is_enough():
    (text,) = [text for text in read_suites(["code"]) if text.name == "annotate"]
    ids = to_length(text, [text], 2000, encode)
    assert abs(len(ids) - 2000) <= 4
    end = text.ids(encode)[-12:]
    assert ids[-12:] == end


def test_a_length_below_the_template_is_refused():
    (text, *_) = read_suites(["chat"])
    with pytest.raises(ContextOverflow, match="the chat template alone takes"):
        to_length(text, [text], 4, encode)


def test_pictures_are_a_suite_of_their_own_and_stand_before_the_question(tmp_path: Path) -> None:
    texts = read_suites([PICTURES])
    assert len(texts) == 5
    for text in texts:
        assert text.image is not None
        with Image.open(text.image) as image:
            assert image.size == (800, 500)
        seen: list[Any] = []
        text.ids(lambda messages, seen=seen: seen.extend(messages) or [1])  # type: ignore[misc]
        first, second = seen[-1]["content"]
        assert (first, second["text"]) == ({"type": "image", "image": text.image}, text.prompt)
    (tmp_path / "own.jsonl").write_text('{"prompt": "What?", "image": "gone.png"}')
    with pytest.raises(UsageError, match=r"line 1 names the image gone\.png, and there is no"):
        read_suites([str(tmp_path / "own.jsonl")])
