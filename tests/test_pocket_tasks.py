"""The tasks that the built-in model is trained on: written as the program reads them, and held out for real."""

import json
import shutil
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from random import Random

import jsonschema
import numpy as np
import pytest

from mlxmtp.engine.calls import CallReader
from mlxmtp.engine.events import Call
from mlxmtp.engine.template import compile_template
from mlxmtp.engine.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]
POCKET = ROOT / "assets/pocket"
REFERENCE = ROOT / "shared/reference/chat_templates/gemma-4-12b-26b-31b.jinja"
TEMPLATE = ROOT / "scripts/pocket/chat_template.jinja"


def training(name):
    """A module of the training code, which is no part of the package."""
    return import_module(f"scripts.pocket.{name}")


tools, extraction, edits = (training(f"tasks.{name}") for name in ("tools", "extraction", "edits"))
pictures, sounds = training("tasks.pictures"), training("tasks.sounds")
layout, task = training("layout"), training("tasks.task")


def drawn(count):
    """Tasks with tools of every kind, ending before an answer and after it."""
    yield from (tools.task(Random(i), held_out=i % 3 == 0) for i in range(count))
    yield from (tools.nothing_fits(Random(i)) for i in range(count // 4))


@cache
def compiled(path):
    return compile_template(path.read_text(), path)


def rendered(path, messages, declared):
    said = {"messages": messages, "tools": [*declared], "bos_token": "<bos>", "add_generation_prompt": True}
    return compiled(path).render(**said)


@pytest.mark.parametrize("until", [1, 3, 5])
def test_the_template_writes_tasks_as_training_reads_them(until):
    more = (task.Ask("And now?"),)
    for one in drawn(24):
        steps = (*one.steps, *more)
        if until > len(steps):
            continue
        part = task.Task(steps[:until], one.tools)
        learned = "".join(segment.text for segment in layout.segments(part))
        if not isinstance(steps[until - 1], task.Say):
            assert rendered(TEMPLATE, part.messages(), part.tools) == learned


@pytest.mark.skipif(not REFERENCE.exists(), reason="needs Google's templates")
def test_the_template_writes_what_gemmas_own_writes():
    for one in drawn(24):
        steps = (*one.steps, task.Ask("And now?"))
        for until in (1, 3, len(steps)):
            messages = task.Task(steps[:until]).messages()
            wanted = rendered(REFERENCE, messages, one.tools).removesuffix("<|channel>thought\n<channel|>")
            assert rendered(TEMPLATE, messages, one.tools) == wanted


def test_the_template_passes_over_what_no_schema_says_and_closes_turns():
    """Objects in objects, arrays, choices, answers behind results, and a call without a result."""
    inner = {"type": "object", "properties": {"b": {"type": "array", "items": {"type": "integer"}}}, "required": ["b"]}
    schema = {"type": "object", "properties": {"a": inner, "c": {"type": "string", "enum": ["x"], "nullable": True}}}
    declared = [{"type": "function", "function": {"name": "f", "description": "F.", "parameters": schema}}]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": {"b": [1, -2.5]}, "c": None}}}
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " hi "}]}]
    messages += [{"role": "assistant", "content": "", "tool_calls": [call], "reasoning": "Think."}]
    text = rendered(TEMPLATE, messages, declared)
    assert text == (
        '<bos><|turn>system\n<|tool>declaration:f{description:<|"|>F.<|"|>,parameters:{properties:{a:{properties:{b:{items:'
        '{type:<|"|>INTEGER<|"|>},type:<|"|>ARRAY<|"|>}},required:[<|"|>b<|"|>],type:<|"|>OBJECT<|"|>},c:{enum:[<|"|>x<|"|>],'
        'nullable:true,type:<|"|>STRING<|"|>}},type:<|"|>OBJECT<|"|>}}<tool|><turn|>\n<|turn>user\n<|image|>hi<turn|>\n'
        "<|turn>model\n<|channel>thought\nThink.\n<channel|><|tool_call>call:f{a:{b:[1,-2.5]},c:null}<tool_call|><|tool_response>"
    )
    if REFERENCE.exists():
        assert rendered(REFERENCE, messages, declared) == text


def test_calls_are_read_as_they_are_written(tmp_path):
    shutil.copytree(POCKET / "target", tmp_path / "target", ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copyfile(TEMPLATE, tmp_path / "target/chat_template.jinja")
    tokenizer = Tokenizer.load(tmp_path / "target")
    for one in drawn(24):
        said = [segment.text for segment in layout.segments(one) if segment.learned and "call:" in segment.text]
        wanted = [(step.name, dict(step.arguments)) for step in one.steps if isinstance(step, task.Call)]
        reader, found = CallReader(tokenizer), []
        for text in said:
            found += [part for token in tokenizer.encode(text) for part in reader.feed(token) if isinstance(part, Call)]
        assert [(call.name, call.arguments) for call in found] == wanted
        ids = tokenizer.prompt_ids(one.messages(1), tools=one.tools)
        first = next(iter(layout.segments(one)))
        assert ids == tokenizer.encode(first.text)


def test_tools_that_are_measured_are_never_declared_in_training():
    def names(held_out):
        made = (tools.task(Random(f"{held_out}/{i}"), held_out=held_out) for i in range(120))
        return {(tool["function"]["name"], tool["function"]["description"]) for one in made for tool in one.tools}

    own = {"calculate", "now", "list_files", "read_file", "search_files", "fetch"}
    measured = {name for name, _ in names(True)}
    assert len(measured) > 120
    alone = {name for name in measured if "_" in name}  # a noun alone, or a verb with a noun, may occur with others
    assert not alone & {name for name, _ in names(False)} - own


def test_what_a_request_says_is_what_the_call_has():
    for i in range(80):
        one = tools.task(Random(i), held_out=True)
        ask, call = one.steps[:2]
        declared = next(tool["function"] for tool in one.tools if tool["function"]["name"] == call.name)
        jsonschema.validate(dict(call.arguments), {**declared["parameters"], "additionalProperties": False})
        for value in call.arguments.values():
            assert isinstance(value, bool) or str(value) in ask.text


def test_every_tool_is_asked_for_once_and_what_fits_none_names_none():
    for i in range(60):
        one = tools._fit_or_not(Random(i))
        declared = [tool["function"] for tool in one.tools]
        assert sorted(step.name for step in one.steps if isinstance(step, task.Call)) == sorted(
            tool["name"] for tool in declared
        )
        strays = [ask.text for ask, said in pairwise(one.steps) if said == task.Say(tools.NOTHING_FITS)]
        assert strays
        described = {tool["description"].rstrip(".").split()[-1] for tool in declared if tool["description"]}
        assert all(word not in stray.split() for word in described for stray in strays)


def test_data_of_sentences_fits_the_schema_and_stands_in_the_text():
    for i in range(120):
        one = extraction.extraction(Random(i), held_out=i % 2 == 0)
        jsonschema.validate(one.data, one.schema)
        assert all(isinstance(value, bool) or str(value) in one.text for value in one.data.values())
        assert json.loads(extraction.task(Random(i)).steps[1].text)


def test_edits_change_what_they_say_and_nothing_else():
    for i in range(120):
        one = edits.edit(Random(i), held_out=i % 2 == 0)
        assert one.wanted.count("\n") == one.text.count("\n")
        assert (one.wanted == one.text) <= (one.asked in edits._PLAIN or one.text.split() == one.wanted.split())
    assert {edits.edit(Random(i)).text for i in range(120)}.isdisjoint(
        {edits.edit(Random(i), held_out=True).text for i in range(120)}
    )


def test_a_picture_is_the_same_whenever_it_is_drawn():
    for i in range(3):
        medium = task.Medium("image", i)
        first, again = (np.asarray(pictures.picture(medium).draw()) for _ in range(2))
        assert (first == again).all()
        assert pictures.encoded(pictures.picture(medium).draw(), Random(i))
    assert pictures.picture(task.Medium("image", 0)) != pictures.picture(task.Medium("image", 0, held_out=True))


def shapes_of(index):
    seen = pictures.picture(task.Medium("image", index))
    return seen.things if seen.kind == "shapes" else ()


def test_what_is_said_of_a_picture_is_what_was_drawn():
    for i in range(80):
        seen = pictures.picture(task.Medium("image", i))
        text = pictures.described(seen)
        for thing in seen.things:
            assert thing.what in text
            assert seen.kind != "shapes" or thing.colour in text.lower()
            assert 0 <= thing.x <= 1
            assert 0 <= thing.y <= seen.height / seen.width
        assert pictures.asked(seen, Random(i))[1].endswith(".")
    threes = [one for one in map(shapes_of, range(400)) if len(one) == 3]
    assert {len({thing.what for thing in one}) for one in threes} == {1, 2, 3}
    assert sum(len({(thing.what, thing.colour) for thing in one}) == 3 for one in threes) > len(threes) / 4
    two = pictures.Picture(400, 400, (0, 0, 0), (pictures.Thing("cross", "red", 0.2, 0.2, 0.1),) * 2, 0, 0.0, 0)
    assert pictures.described(two) == "Two red crosses."


def test_voices_that_are_measured_are_never_heard_in_training():
    heard = {sounds.spoken(task.Medium("audio", i)).voice for i in range(500)}
    measured = {sounds.spoken(task.Medium("audio", i, held_out=True)).voice for i in range(50)}
    assert measured == set(sounds.HELD_OUT_VOICES)
    assert heard.isdisjoint(measured)
    clip = np.sin(np.arange(16000) / 20).astype(np.float32)
    assert (sounds.varied(clip, Random(1)) == sounds.varied(clip, Random(1))).all()


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng")
def test_sounds_are_made_once_and_found_by_number(tmp_path):
    sounds.synthesize(tmp_path, trained=3, measured=2)
    made = (tmp_path / "train.npy").stat().st_mtime_ns
    sounds.synthesize(tmp_path, trained=3, measured=2)
    assert (tmp_path / "train.npy").stat().st_mtime_ns == made
    found = sounds.Sounds(tmp_path)
    assert found.count == 3
    medium = task.Medium("audio", 4)  # number 1 again, heard in another way
    assert found.text(medium) == sounds.spoken(task.Medium("audio", 1))
    assert len(found.samples(medium)) > 3000
    first, third = (found.samples(task.Medium("audio", i, held_out=True)) for i in (0, 2))
    assert (first == third).all()


def test_tables_replace_the_ones_of_a_page(tmp_path):
    measure = training("measure")
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- measured -->\nold\n<!-- end of measured -->\nb\n")
    score = measure.Score()
    score.add(right=True, told="")
    score.add(right=False, told="x")
    measure.write(page, measure.tables({"edits": score}))
    assert page.read_text().startswith(
        "a\n<!-- measured -->\n| asked | right | |\n|---|---|---|\n| edits | 1 of 2 | 50.0% |\n"
    )
    assert page.read_text().endswith("<!-- end of measured -->\nb\n")
