"""Turns after turns on one decoder: each reads only what is new, and says what a fresh decoder would say."""

import sys
from types import FrameType
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxmtp.decode import snapshots
from mlxmtp.decode.decoder import Decoder
from mlxmtp.decode.draft_length import DraftLength
from mlxmtp.limits import SLACK
from mlxmtp.models.kv_cache import KVCache
from tests.golden import FAMILIES, load_golden
from tests.networks import decode, drafter, target

LONG = SLACK + 10
"""Tokens of an answer after which no ring of the goldens (windows of 16 and less) can go back to its beginning."""


def decoder(family: str, **options: object) -> Decoder:
    return Decoder(target(family), drafter(family), **({"compiled": "never"} | options))  # type: ignore[arg-type]


def prompt(family: str) -> list[int]:
    return load_golden(family).records["long"].prompt


@pytest.mark.few(2)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_turn_whose_answer_is_not_repeated_goes_back_to_its_prompt(family):
    """As after a thought: the next prompt holds the last one, then something else than what was generated."""
    engine = decoder(family)
    first = prompt(family)
    said = decode(engine, first, LONG, num_draft_tokens=3, snapshot_at=[len(first)])
    following = [*first, *said[-20:], 5, 6, 7]
    assert decode(engine, following, 20) == decode(decoder(family), following, 20)
    assert engine.reused == len(first)


def test_without_a_snapshot_such_a_turn_reads_everything_again():
    engine, first = decoder("e2b"), prompt("e2b")
    said = decode(engine, first, LONG)
    following = [*first, *said[-20:], 5]
    assert decode(engine, following, 20) == decode(decoder("e2b"), following, 20)
    assert engine.reused == 0


@pytest.mark.parametrize("family", ["e2b", "31b"])
def test_the_same_prompt_again_reads_nothing(family):
    engine, first = decoder(family), prompt(family)
    said = decode(engine, first, LONG, snapshot_at=[len(first)])
    read: list[int] = []
    again = decode(engine, first, LONG, on_prefill=lambda done, total: read.append(done))
    assert (again, engine.reused, read) == (said, len(first), [])


@pytest.mark.few(2)
@pytest.mark.parametrize("family", FAMILIES)
def test_another_question_about_the_same_material_goes_back_to_before_the_question(family, monkeypatch):
    monkeypatch.setattr(snapshots, "APART", 8)
    engine, first = decoder(family), prompt(family)
    question = len(first) - 9
    said = decode(engine, first, LONG, snapshot_at=[question, len(first)])
    other = [*first[:question], 9, 8, 7]
    answered = decode(engine, other, LONG, snapshot_at=[question, len(other)])
    assert answered[:20] == decode(decoder(family), other, 20)
    assert engine.reused == question
    assert decode(engine, first, 20) == said[:20]
    assert engine.reused == question


@pytest.mark.parametrize(("setting", "value"), [("APART", 10**6), ("SNAPSHOT_BYTES", 1)])
def test_a_place_that_saves_little_or_could_not_be_kept_is_not_taken(setting, value, monkeypatch):
    monkeypatch.setattr(snapshots, "APART", 8)
    monkeypatch.setattr(snapshots, setting, value)
    engine, first = decoder("12b"), prompt("12b")
    taken: list[int] = []
    take = snapshots.Snapshots.take

    def counted(self: snapshots.Snapshots, cache: KVCache, length: int, hidden: mx.array) -> None:
        taken.append(length)
        take(self, cache, length, hidden)

    monkeypatch.setattr(snapshots.Snapshots, "take", counted)
    decode(engine, first, 2, snapshot_at=[len(first) - 9, len(first)])
    assert taken == [len(first)]


def test_a_snapshot_before_the_end_of_the_prompt_serves_templates_that_close_a_thought_there():
    engine, first = decoder("12b"), prompt("12b")
    decode(engine, first, LONG, snapshot_at=[len(first) - 4])
    following = [*first[:-4], 9, 8, 7]
    assert decode(engine, following, 20) == decode(decoder("12b"), following, 20)
    assert engine.reused == len(first) - 4


def test_a_question_taken_back_returns_to_the_turn_before():
    engine, first = decoder("e2b"), prompt("e2b")
    said = decode(engine, first, LONG, snapshot_at=[len(first)])
    second = [*first, *said, 4, 5, 6]
    decode(engine, second, LONG, snapshot_at=[len(second)])
    assert engine.reused == len(first) + len(said) - 1
    other = [*first, *said, 9, 9]
    assert decode(engine, other, 20) == decode(decoder("e2b"), other, 20)
    assert engine.reused == len(first)


def test_a_snapshot_outlives_growth_of_the_buffers():
    engine, first = decoder("e2b"), prompt("e2b")[:10]  # taken while the ring is shorter than it can become
    decode(engine, first, 2, snapshot_at=[len(first)])
    engine._cache.reserve(4096)
    decode(engine, [*first, *prompt("e2b")], LONG)
    assert decode(engine, first, 20) == decode(decoder("e2b"), first, 20)
    assert engine.reused == len(first)


def test_a_short_conversation_after_a_long_one_is_as_small_and_says_the_same():
    engine, first = decoder("e2b"), prompt("e2b")
    engine._cache.reserve(4096)
    said = decode(engine, first, 30, num_draft_tokens=3)
    assert engine._cache.capacity == 256
    following = [*first, *said, 5, 6]
    engine._cache.reserve(4096)
    assert decode(engine, following, 20) == decode(decoder("e2b"), following, 20)
    assert engine.reused == len(first) + len(said) - 1


@pytest.mark.few(2)
@pytest.mark.parametrize("back", range(4, 64, 12))
def test_a_snapshot_knows_what_its_rings_had_forgotten_already(back):
    """A text is cut, gone on with and cut again: rings that were further on before have lost what a pass before the
    snapshot attends to, wherever the snapshot itself is."""
    engine, first = decoder("e2b"), prompt("e2b") * 2
    decode(engine, first, 2)
    cut = len(first) - 50
    shorter = [*first[:cut], 9, 8, 7]
    decode(engine, shorter, 2, snapshot_at=[len(shorter)])
    assert engine.reused == cut
    decode(engine, [*shorter, 3], LONG)  # the rings move on
    decode(engine, shorter, 2)  # and come back
    assert engine.reused == len(shorter)
    other = [*first[: cut - back], 5, 6]
    assert decode(engine, other, 20) == decode(decoder("e2b"), other, 20)


def interrupted_everywhere(engine: Decoder, ids: list[int], at: int) -> bool:
    """Ctrl-C at the `at`-th line that runs in cache.py or decoder.py during a request; false if there are fewer."""
    left = at

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.endswith(("models/kv_cache.py", "decode/decoder.py")):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        decode(engine, ids, 2)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_ctrl_c_at_any_line_leaves_a_cache_that_tells_the_truth():
    """A long text, then a shorter one for which buffers shrink and rings go back, then the long one again."""
    first = prompt("e2b")
    long, short = [*first, *first, *first], [*first[:40], 5]
    then = [*long, 4]
    expected = decode(decoder("e2b"), then, 3)
    at, held = 1, 0
    while True:
        engine = decoder("e2b")
        decode(engine, long[:40], 1, snapshot_at=[40])
        engine._cache.reserve(2048)
        decode(engine, long, 1)
        if not interrupted_everywhere(engine, short, at):
            break
        assert decode(engine, then, 3) == expected, at
        held += engine.reused
        at += 7
    assert at > 100
    assert held > 0


def test_old_snapshots_make_room_for_new_ones(monkeypatch):
    monkeypatch.setattr(snapshots, "SNAPSHOT_BYTES", 1)
    engine, first = decoder("e2b"), prompt("e2b")
    decode(engine, first[:40], LONG, snapshot_at=[40])
    decode(engine, first, LONG, snapshot_at=[len(first)])
    assert [one.length for one in engine._snapshots._all] == [len(first)]


def test_ctrl_c_between_two_layers_of_a_chunk_does_not_leave_a_broken_ring(monkeypatch):
    engine, first = decoder("e2b"), prompt("e2b")
    said = decode(engine, first, 4)
    following = [*first, *said, *first, *first]

    class Interrupting:
        def __init__(self, layer: object) -> None:
            self.kind, self.first_norm = layer.kind, layer.first_norm  # type: ignore[attr-defined]

        def __call__(self, *arguments: object, **named: object) -> None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        layers = engine.target.layers
        patch.setattr(engine.target, "layers", [*layers[:2], Interrupting(layers[2]), *layers[3:]])
        with pytest.raises(KeyboardInterrupt):
            decode(engine, following, 4)
    assert decode(engine, following, 20) == decode(decoder("e2b"), following, 20)


def test_a_snapshot_that_an_interruption_left_out_is_taken_when_the_prompt_is_asked_for_again():
    """A chunk counts as written before its layers are computed: it ends at the mark, and Ctrl-C comes then."""
    engine, first = decoder("e2b"), prompt("e2b")
    mark = len(first) - 9

    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode(engine, first, LONG, snapshot_at=[mark], on_prefill=interrupt)
    assert engine.rows == mark
    assert decode(engine, first, LONG, snapshot_at=[mark]) == decode(decoder("e2b"), first, LONG)
    assert engine.reused == mark - 1
    other = [*first[:mark], 9, 8, 7]
    assert decode(engine, other, 20) == decode(decoder("e2b"), other, 20)
    assert engine.reused == mark


def test_a_continued_answer_begins_anew_where_another_one_used_the_decoder(monkeypatch):
    begun: list[list[int]] = []
    engine, first = decoder("e2b"), prompt("e2b")
    expected = decode(decoder("e2b"), first, 24)
    said = decode(engine, first, 8)
    engine._near_ties = mx.array(7)
    monkeypatch.setattr(DraftLength, "begin", lambda _, text=(): begun.append(list(text)))
    said += decode(engine, [*first, *said], 8, said=8)
    assert begun == []
    assert engine._near_ties is not None
    decode(engine, [*first[:9], 5], 8)
    engine._near_ties = mx.array(7)
    assert said + decode(engine, [*first, *said], 8, said=16) == expected
    assert begun == [[*first[:9], 5], [*first, *said]]
    assert engine._near_ties is None


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[int, int, int, int]]:
    """Turns: where to cut the conversation, new tokens, answer length, how far from the end a snapshot is taken."""
    turn = st.tuples(st.integers(0, 400), st.integers(1, 30), st.integers(1, 40), st.integers(0, 12))
    return draw(st.lists(turn, min_size=2, max_size=4))


@settings(max_examples=4, deadline=None)
@given(histories(), st.sampled_from([0, 1]))
def test_any_conversation_says_what_fresh_decoders_would_say(history, in_flight):
    engine = decoder("e2b", in_flight=in_flight)
    conversation: list[int] = []
    for number, (cut, new, length, back) in enumerate(history):
        start = len(conversation) if cut > 200 else min(cut, len(conversation))
        conversation = conversation[:start] + [(7 * number + 3 * i) % 100 + 4 for i in range(new)]
        options = {"num_draft_tokens": number % 4}
        said = decode(engine, conversation, length, snapshot_at=[len(conversation) - back], **options)
        assert said == decode(decoder("e2b"), conversation, length, **options)
        conversation = conversation + said
