"""The K/V buffers: whatever is written, rejected, rewound or grown, a query sees exactly its window's newest rows."""

from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxmtp.limits import SLACK, STEP
from mlxmtp.models.config import FULL, SLIDING
from mlxmtp.models.kv_cache import CacheSpec, FixedView, KVCache, PromptView, ring_positions

WINDOW = 8
SPEC = CacheSpec((SLIDING, FULL), (1, 1), (1, 1), WINDOW)


class Model:
    """A cache and what it should hold: the serial number written last at each position, drafts included."""

    def __init__(self) -> None:
        self.cache = KVCache(SPEC, mx.float32)
        self.truth: dict[int, float] = {}
        self.serial = 0.0
        self.length = 0  # committed rows

    def rows(self, start: int, count: int) -> mx.array:
        """``count`` new rows [1, 2, count, 1] with serial numbers, noted as the truth from ``start`` on."""
        numbers = []
        for position in range(start, start + count):
            self.serial += 1
            self.truth[position] = self.serial
            numbers.append(self.serial)
        return mx.array(numbers).reshape(1, 1, count, 1) * mx.array([1.0, -1.0]).reshape(1, 2, 1, 1)

    def read(self, count: int) -> None:
        """A chunk of prompt."""
        self.cache.reserve(self.length + count)
        view = PromptView(SPEC, self.cache.buffers, self.length, count)
        rows = self.rows(self.length, count)
        seen: list[Any] = [view.update(i, rows) for i in range(2)]
        self.cache.buffers = view.buffers
        self.cache.newest = max(self.cache.newest, self.length + count - 1)
        mask = view.masks[SLIDING]
        assert isinstance(mask, mx.array)
        for query in range(count):
            self.check(self.length + query, seen[0], mask[query], WINDOW)
            if query == count - 1:  # "causal" shows the last query everything
                self.check(self.length + query, seen[1], mx.ones((self.length + count,)), None)
        self.length += count

    def round(self, drafts: int, accepted: int) -> None:
        """A pass over bonus + drafts of which some are rejected."""
        self.cache.reserve(self.length + drafts + 1)
        view = FixedView(SPEC, self.cache.buffers, mx.array([self.length], mx.int32), drafts + 1)
        rows = self.rows(self.length, drafts + 1)
        seen: list[Any] = [view.update(i, rows) for i in range(2)]
        self.cache.buffers = view.buffers
        self.cache.newest = max(self.cache.newest, self.length + drafts)
        for query in range(drafts + 1):
            self.check(self.length + query, seen[0], view.masks[SLIDING][query], WINDOW)
            self.check(self.length + query, seen[1], view.masks[FULL][query], None)
        self.length += accepted + 1

    def check(self, query: int, kv: mx.array, mask: mx.array, window: int | None) -> None:
        first = 0 if window is None else max(0, query - window + 1)
        expected = [self.truth[position] for position in range(first, query + 1)]
        visible = [i for i, m in enumerate(list(mask)) if m.item()]
        for head, sign in ((0, 1), (1, -1)):
            column: Any = kv[0, head, :, 0].tolist()
            assert sorted(sign * column[i] for i in visible) == sorted(expected)


steps = st.one_of(
    st.tuples(st.just("read"), st.integers(1, 40)),
    st.tuples(st.just("round"), st.integers(0, 8), st.integers(0, 8)),
    st.tuples(st.just("rewind"), st.integers(0, 200)),
    st.tuples(st.just("shrink"), st.integers(0, 40)),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(steps, min_size=1, max_size=30))
def test_a_query_sees_its_window_after_any_history(history):
    model = Model()
    model.read(3)
    for step in history:
        match step:
            case ("read", count):
                model.read(count)
            case ("round", drafts, accepted):
                model.round(drafts, min(drafts, accepted))
            case ("shrink", room):
                model.cache.shrink(model.length + room)
            case ("rewind", back):
                length = max(1, model.length - back)
                if model.cache.can_rewind(length):
                    model.length = length


def test_a_rewind_beyond_the_ring_is_refused_and_a_small_one_is_not():
    model = Model()
    model.read(200)
    assert model.cache.can_rewind(200 - SLACK)
    assert not model.cache.can_rewind(200 - SLACK - 1)
    assert not model.cache.can_rewind(1)


def test_growth_keeps_rows_and_moves_in_steps():
    model = Model()
    model.read(5)
    assert model.cache.capacity == STEP
    model.read(STEP)
    assert model.cache.capacity == 2 * STEP
    model.round(3, 1)


def test_a_long_text_grows_by_few_rows():
    cache = KVCache(SPEC, mx.float32)
    for rows in (STEP, 10 * STEP, 10 * STEP + 1, 400 * STEP, 400 * STEP + 1):
        wanted = cache.capacity_for(rows)
        cache.reserve(rows)
        assert cache.capacity == wanted
        assert rows <= wanted <= min(1.25 * rows + STEP, rows + 4096 + STEP)


def test_growth_that_was_interrupted_is_finished_by_the_next(monkeypatch):
    cache = KVCache(CacheSpec((FULL,) * 3, (1,) * 3, (4,) * 3, WINDOW), mx.float32)
    cache.reserve(10)
    cache.buffers = [mx.full(buffer.shape, i + 1.0) for i, buffer in enumerate(cache.buffers)]
    cache.newest = 9
    evaluated = []

    def stop_at_the_second(*arrays):
        evaluated.append(arrays)
        if len(evaluated) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mx, "eval", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            cache.reserve(STEP + 1)
    cache.reserve(20)
    assert {buffer.shape[2] for buffer in cache.buffers} == {cache.capacity}
    assert [buffer[0, 0, :10].min().item() for buffer in cache.buffers] == [1, 2, 3]


@given(st.integers(0, 5000), st.integers(1, 700))
def test_ring_positions_are_the_newest_congruent_ones(last, rows):
    positions: Any = ring_positions(mx.array([last]), rows).tolist()
    for row, position in enumerate(positions):
        assert position % rows == row
        assert last - rows < position <= last


def test_a_much_shorter_text_gives_rows_back_and_keeps_its_own():
    held = KVCache(SPEC, mx.float32)
    held.reserve(4000)
    view = PromptView(SPEC, held.buffers, 0, 300)
    rows = mx.arange(300.0).reshape(1, 1, 300, 1) * mx.array([1.0, -1.0]).reshape(1, 2, 1, 1)
    for i in range(2):
        view.update(i, rows)
    held.buffers, held.newest = view.buffers, 299
    ring = held.buffers[0].tolist()
    held.shrink(2100)
    assert held.capacity == 4096
    held.shrink(400)
    assert held.capacity == 512
    assert held.buffers[1][0, 0, :300, 0].tolist() == list(range(300))
    assert held.buffers[0].tolist() == ring


def test_rows_are_right_after_giving_some_back():
    model = Model()
    model.read(100)
    model.cache.reserve(4000)
    model.cache.shrink(120)
    assert model.cache.capacity == STEP
    model.round(3, 1)
    model.read(40)


def test_growth_holds_old_and_new_of_one_layer_only():
    spec = CacheSpec((FULL,) * 8, (1,) * 8, (64,) * 8, WINDOW)
    held = KVCache(spec, mx.float32)
    held.reserve(8_000)
    mx.eval(held.buffers)
    mx.reset_peak_memory()
    before, old = mx.get_active_memory(), held.buffers[0].nbytes
    held.reserve(9_000)
    one = held.buffers[0].nbytes
    assert mx.get_peak_memory() - before < 8 * (one - old) + 1.1 * one


def test_buffers_are_updated_in_place():
    """A pass must not copy the cache: peak memory stays one buffer and not two."""
    spec = CacheSpec((FULL,), (1,), (64,), WINDOW)
    held = KVCache(spec, mx.float32)
    held.reserve(20_000)
    mx.eval(held.buffers)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    for position in range(3):
        view = FixedView(spec, held.buffers, mx.array([position], mx.int32), 1)
        view.update(0, mx.ones((1, 2, 1, 64)))
        held.buffers = view.buffers
        del view
        mx.eval(held.buffers)
    assert mx.get_peak_memory() - before < held.buffers[0].nbytes / 2
