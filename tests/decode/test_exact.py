"""Exact text, on kernels that sum in another order for other numbers of rows, as those of Metal do.

In 16 bits such orders make different texts, which is asserted as well: a test that cannot differ shows nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from mlxmtp.app import open as opening
from mlxmtp.app.open import Checkpoint, exact_of
from mlxmtp.decode import decoder as decoder_module
from mlxmtp.decode import exact
from mlxmtp.decode.decoder import Decoder
from mlxmtp.decode.draft_length import DraftLength
from mlxmtp.decode.exact import Passes, find_passes, probe, room_for
from mlxmtp.decode.sampling import Sampling, near_ties
from mlxmtp.engine.model import Model
from mlxmtp.errors import LoadError, UsageError
from mlxmtp.models import device, layer, linear, metal
from mlxmtp.models.drafter import Drafter
from mlxmtp.models.load import load_drafter, load_target
from mlxmtp.models.target import Target
from mlxmtp.settings import Settings
from tests.golden import load_golden
from tests.networks import Adversary, decode

COUNT = 24
SLIDING = 8  # head size of the sliding layers here, whose attention is one kernel
Orders = Callable[[int], int]
"""Rows of a product -> parts that its sums are made of: 1, 2 or 4."""

Use = Callable[[Orders], None]


def few_row_kernels(rows: int) -> int:
    """As on an M3 or later: one kernel for one row, one for up to five, another one behind."""
    return 1 if rows == 1 else 2 if rows <= 5 else 4


def summed(x: mx.array, weights: Any, parts: int) -> mx.array:
    """x [.., L, in] times weights [.., in, out], in so many sums one after the other."""
    pieces = zip(mx.split(x, parts, axis=-1), mx.split(weights, parts, axis=-2), strict=True)
    found = [one @ other for one, other in pieces]
    return sum(found[1:], found[0])


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Compute in 16 bits with kernels whose order of sums depends on the rows."""
    monkeypatch.setattr(device, "on_cpu", lambda: False)
    monkeypatch.setattr(exact, "on_cpu", lambda: False)
    monkeypatch.setattr(device, "compute_dtype", lambda stored: stored)
    monkeypatch.setattr(exact, "_FREE", 1e9)  # what passes cost here says nothing
    monkeypatch.setattr(decoder_module, "AHEAD", 1)  # short buffers, which grow under way
    monkeypatch.setattr(metal, "HEADS", frozenset({SLIDING}))
    gathered: Any = mx.gather_mm

    def wide(x: mx.array, weights: mx.array, **pairs: Any) -> mx.array:
        return gathered(x.astype(mx.float32), weights.astype(mx.float32), **pairs).astype(x.dtype)

    monkeypatch.setattr(mx, "gather_mm", wide)  # on a CPU it takes nothing else

    def with_orders(orders: Orders) -> None:
        def product(self: linear.Linear, x: mx.array) -> mx.array:
            outs = [summed(x, part, orders(x.shape[0])) for part in self._parts]
            return outs[0] if len(outs) == 1 else mx.concatenate(outs, axis=-1)

        def project(self: linear.Matrix, x: mx.array) -> mx.array:
            return summed(x, self.arrays[0].T, orders(x.shape[0]))

        monkeypatch.setattr(linear.Linear, "__call__", product)
        monkeypatch.setattr(linear.Matrix, "project", project)
        # The rows of a group's heads are together: as many as four heads make of four rows is another kernel.
        order = {"scores": lambda q, k: summed(q, k.swapaxes(2, 3), 2 if q.shape[2] > 8 else 1)}
        order["weighted_sum"] = lambda w, v: summed(w, v, 4 if w.shape[2] > 8 else 2)
        for name, made in order.items():
            monkeypatch.setattr(layer, name, made)

    return with_orders


def load(family: str) -> tuple[Target, Drafter]:
    golden = load_golden(family)
    target = load_target(golden.target)
    return target, load_drafter(golden.drafter, target)


WAYS = ((0, 0), (0, 1), (1, 1), (3, 0), (4, 1), ("auto", 1))  # draft lengths, rounds in flight


def texts(
    target: Target, drafter: Any, passes: Passes | None, temp: float, prompt: list[int], ways: Any = WAYS
) -> list[list[int]]:
    """One prompt's text, decoded in several ways."""
    found = []
    for drafts, in_flight in ways:
        decoder = Decoder(target, drafter, compiled="never", in_flight=in_flight, passes=passes)
        sampling = Sampling(temp=temp, seed=3)
        found.append(decode(decoder, prompt, COUNT, num_draft_tokens=drafts, sampling=sampling))
    return found


@pytest.mark.few(1)
@pytest.mark.parametrize(("family", "temp"), [("e2b", 1.0), ("26b", 0.0)])
def test_any_drafts_write_one_text(use, family, temp):
    use(few_row_kernels)
    target, drafter = load(family)
    passes = find_passes(target, "auto")
    assert passes == Passes(2, 5)
    prompt = load_golden(family).records["long"].prompt
    drafted = texts(target, drafter, passes, temp, prompt)
    drafted += texts(target, Adversary(7, target.config.vocab_size), passes, temp, prompt, [(3, 1)])
    assert all(text == drafted[0] for text in drafted)
    other = texts(target, drafter, None, temp, prompt, [(0, 0), (3, 0)])
    assert other[0] != other[1]


def test_the_text_is_one_where_buffers_grow(use):
    """Sums over keys depend on the capacity, so it has to change at the same token in every arm."""
    use(few_row_kernels)
    target, drafter = load("12b")
    passes = find_passes(target, "auto")
    prompt = [5 + (7 * i + i * i) % 120 for i in range(230)]
    _, end = room_for(target.cache_spec.window, len(prompt) + 1, 0)
    assert len(prompt) < end < len(prompt) + COUNT
    drafted = texts(target, drafter, passes, 1.0, prompt)
    assert all(text == drafted[0] for text in drafted)
    long_before = Decoder(target, drafter, compiled="never", passes=passes)
    decode(long_before, [*prompt, *prompt, 9], 5)
    sampling = Sampling(temp=1.0, seed=3)
    assert decode(long_before, prompt, COUNT, num_draft_tokens=3, sampling=sampling) == drafted[0]


def place_matters(rows: int) -> int:
    return 2 if rows % 2 else 1


@pytest.mark.parametrize(
    ("orders", "found"),
    [
        (lambda rows: 1 if rows <= 5 else 2, Passes(1, 5)),  # M1 and M2
        (lambda rows: 1 if rows == 1 else 2 if rows <= 4 else 4, Passes(2, 4)),  # attention of E2B
        (lambda rows: 1 if rows <= 2 else 2 if rows == 3 else 4, Passes(5, 5)),  # no two alike: all passes are padded
    ],
)
def test_limits_are_what_the_machine_computes_alike(use, orders, found):
    use(orders)
    target, _ = load("e2b")
    assert probe(target) == found


def test_it_is_refused_where_a_rows_place_decides(use, monkeypatch):
    use(few_row_kernels)
    target, _ = load("e2b")
    project = linear.Linear.__call__

    def by_place(self: linear.Linear, x: mx.array) -> mx.array:
        y = project(self, x)
        return y * (1 + mx.arange(len(x))[:, None].astype(y.dtype) / 128)

    monkeypatch.setattr(linear.Linear, "__call__", by_place)
    assert find_passes(target, "auto") is None
    with pytest.raises(LoadError, match=r"cannot be had .* where a token stands in a pass\. Leave --exact out"):
        find_passes(target, "on")


def test_it_is_off_on_a_cpu_unless_asked(monkeypatch):
    monkeypatch.setattr(exact, "probe", lambda _: Passes(1, 5))
    monkeypatch.setattr(exact, "on_cpu", lambda: True)
    target, _ = load("e2b")
    assert find_passes(target, "auto") is None
    assert find_passes(target, "off") is None
    assert find_passes(target, "on") == Passes(1, 5)


def test_passes_that_cost_something_are_only_taken_when_asked(monkeypatch):
    monkeypatch.setattr(exact, "probe", lambda _: Passes(5, 5, 1.5))
    monkeypatch.setattr(exact, "on_cpu", lambda: False)
    target, _ = load("e2b")
    assert find_passes(target, "auto") is None
    assert find_passes(target, "on") == Passes(5, 5)


def test_more_drafts_than_exact_text_can_have():
    assert exact_of(Settings()) == "auto"
    assert exact_of(Settings(num_draft_tokens=4, exact="on")) == "on"
    assert exact_of(Settings(num_draft_tokens=5)) == exact_of(Settings(draft_from="mtp,copy")) == "off"
    assert exact_of(Settings(), [0, 8]) == "off"
    for asked in (Settings(exact="on", num_draft_tokens=8), Settings(exact="on", draft_from="copy")):
        with pytest.raises(UsageError, match="Exact text takes"):
            exact_of(asked)


def test_forced_tokens_stay_within_the_limit():
    for most in (4, 3, 0):
        for k in (0, 8):
            length, given = DraftLength().beside_forced([*range(20)], min(k, most), 99, most, (0, 3, 8), (0, 3, 8, 15))
            assert length == len(given) <= most


def test_near_ties_are_tokens_that_the_last_bits_decide():
    logits = mx.array([[1.0, 0.9, 0.0], [1.0, 0.0, 0.7], [3.0, 3.0, 0.0]])
    key, places = Sampling(seed=1).key(), mx.arange(3)
    assert near_ties(logits, key, places, (0.0, 1.0, 0, 0.0)).item() == 2
    far = mx.array([[100.0, 0.0, 0.0]])
    assert near_ties(far, key, places[:1], (1.0, 0.95, 2, 0.0)).item() == 0


_BITS = """
import mlx.core as mx  # before mlxmtp: with the reference BLAS every row is summed for itself
from pathlib import Path
import sys
from mlxmtp.decode.exact import _filled
from mlxmtp.models.blas import load
from mlxmtp.models.kv_cache import FixedView
from mlxmtp.models.load import load_target
from mlxmtp.models.slots import SlotCache, SlotsView
assert not load().active
for folder in sys.argv[1:]:
    target = load_target(Path(folder))
    spec = target.cache_spec
    cache, positions = _filled(target)

    def one(tokens, offset, buffers):
        view = FixedView(spec, buffers, offset, len(tokens))
        return target.logits(target.hidden(tokens, view))

    def several(tokens, offset, buffers):
        view = SlotsView(spec, buffers, offset, tokens.shape[1])
        return target.logits(target.hidden(tokens.reshape(-1), view)).reshape(*tokens.shape, -1)

    for position in positions:
        tokens = mx.array([(17 * (position + i)) % target.config.vocab_size for i in range(8)], mx.int32)
        offset = mx.array([position], mx.int32)
        whole = one(tokens, offset, cache.buffers)
        for run in (one, mx.compile(one)) if position == positions[0] else (one,):
            for rows in (1, 2, 3, 5):
                assert mx.array_equal(run(tokens[:rows], offset, cache.buffers), whole[:rows]).item(), (folder, rows)
        for slots in (2, 8) if position == positions[-1] else ():
            lane = SlotCache(spec, target.dtype, slots)
            lane.reserve(cache.capacity)
            cache.newest = position
            for slot in range(slots):
                lane.put(slot, cache, cache.capacity)
            found = several(mx.stack([tokens[:3]] * slots), mx.array([position] * slots, mx.int32), lane.buffers)
            for slot in range(slots):
                assert mx.array_equal(found[slot], whole[:3]).item(), (folder, slots, slot)
print("equal")
"""


@pytest.mark.cpu
def test_rows_and_slots_have_equal_bits_where_sums_have_one_order():
    """No tolerance: what differs here is a wrong mask, position or ring."""
    folders = [str(load_golden(family).target) for family in ("e2b", "26b", "31b")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    ran = subprocess.run(
        [sys.executable, "-c", _BITS, *folders], capture_output=True, text=True, env=environment, check=False
    )
    assert (ran.stdout, ran.returncode) == ("equal\n", 0), ran.stderr[-2000:]


@pytest.mark.parametrize(
    ("found", "wanted", "looked_for"),
    [(None, "auto", "off"), (False, "auto", "off"), (True, "auto", "auto"), (None, "on", "on")],
)
def test_a_first_start_does_not_wait_for_exact_text_to_be_looked_for(found, wanted, looked_for, tmp_path, monkeypatch):
    class Loading(Exception):
        pass

    def load(*_: object, exact: str, **__: object) -> None:
        assert exact == looked_for
        raise Loading

    monkeypatch.setattr(Model, "load", load)
    monkeypatch.setattr(opening, "measured", lambda _: None if found is None else SimpleNamespace(exact=found))
    with pytest.raises(Loading):
        opening._read_weights(Checkpoint("x", tmp_path), None, None, tmp_path, exact=wanted)
