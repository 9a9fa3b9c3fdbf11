"""A device that fails: nothing it may have damaged is kept, saved or built upon.

On Metal an array whose work failed counts as computed and holds whatever was there. So the device of these tests fails
at its n-th evaluation, for every n, and leaves NaN in all keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import pytest

from mlxmtp.decode.decoder import Decoder
from mlxmtp.decode.sampling import Sampling
from mlxmtp.engine.model import Model
from mlxmtp.errors import DeviceFailed, MlxmtpError, sentence
from mlxmtp.models import load
from tests.golden import load_golden
from tests.networks import decode, drafter, target

WORDS = "[METAL] Command buffer execution failed: Insufficient Memory"
COUNT = 6


class Device:
    """Counts evaluations in a `with` block and fails at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._real = {name: getattr(mx, name) for name in ("eval", "async_eval")}
        self._monkeypatch = monkeypatch

    @contextmanager
    def failing(self, at: int | None, poison: Callable[[], None] = lambda: None) -> Iterator[list[int]]:
        """Fail at evaluation ``at``, after ``poison``; yields a list with the number of evaluations so far."""
        count = [0]

        def wrapped(real: Callable[..., None]) -> Callable[..., None]:
            def call(*arrays: Any) -> None:
                count[0] += 1
                if count[0] - 1 == at:
                    poison()
                    raise RuntimeError(WORDS)
                real(*arrays)

            return call

        with self._monkeypatch.context() as patch:
            for name, real in self._real.items():
                patch.setattr(mx, name, wrapped(real))
            yield count


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


def engine(family: str, in_flight: int = 1) -> Decoder:
    return Decoder(target(family), drafter(family), compiled="never", chunk=20, in_flight=in_flight)


def poison(decoder: Decoder) -> None:
    """What a failed command buffer leaves in memory."""
    rings = [ring for place in decoder._snapshots._all for ring in place.rings]
    for array in [*decoder._cache.buffers, *rings]:
        array[...] = mx.full(array.shape, float("nan"), array.dtype)


@pytest.mark.few(1)
@pytest.mark.parametrize(("family", "in_flight", "temp"), [("e2b", 1, 0.0), ("26b", 0, 1.0)])
def test_after_a_failure_anywhere_in_a_turn_the_next_one_is_that_of_a_fresh_process(family, in_flight, temp, device):
    first = load_golden(family).records["short"].prompt
    options: dict[str, Any] = {"num_draft_tokens": 3, "sampling": Sampling(temp=temp, seed=5)}
    decoder = engine(family, in_flight)
    said = decode(decoder, first, COUNT, snapshot_at=[len(first)], **options)
    second = [*first, *said, *load_golden(family).records["long"].prompt[:30]]
    decode(decoder, first, 1, snapshot_at=[len(first)], **options)
    with device.failing(None) as evaluations:
        decode(decoder, second, COUNT, **options)
    assert evaluations[0] > 20
    decode(decoder, first, COUNT, **options)
    for n in range(evaluations[0]):
        decode(decoder, first, 1, snapshot_at=[len(first)], **options)
        with device.failing(n, lambda: poison(decoder)), pytest.raises(DeviceFailed, match="Insufficient Memory"):
            decode(decoder, second, COUNT, **options)
        assert (decoder.tokens, decoder.rows, decoder._cache.buffers) == ([], 0, [])
        with pytest.raises(ValueError, match="no snapshot"):
            decoder.export_state(len(first))
        assert decode(decoder, first, COUNT, snapshot_at=[len(first)], **options) == said
        assert decoder.reused == 0


@pytest.mark.parametrize("closes", [True, False])
def test_a_round_that_nobody_read_is_waited_for_before_its_rows_are_used_again(closes, device):
    """Behind a stop token, and behind rounds that were closed, one more is under way."""
    first = load_golden("e2b").records["short"].prompt
    decoder, plain = engine("e2b"), engine("e2b")
    whole = decode(plain, first, COUNT, num_draft_tokens=0)
    rounds = decoder.rounds(first, max_tokens=COUNT, num_draft_tokens=0, stop=() if closes else whole[2:3])
    for round_ in rounds:
        if closes and round_.tokens[-1] == whole[2]:
            rounds.close()
    for use in (lambda: decode(decoder, [*first, 7], 3), decoder.export_state):
        if decoder._sent:
            with device.failing(0, lambda: poison(decoder)), pytest.raises(DeviceFailed):
                use()
        assert not decoder._sent
        assert decoder.rows == 0
    assert decode(decoder, first, COUNT) == whole


def test_a_failure_is_told_in_one_sentence_with_the_next_step(device):
    decoder = engine("e2b")
    with device.failing(3), pytest.raises(MlxmtpError) as failure:
        decode(decoder, load_golden("e2b").records["long"].prompt, COUNT)
    assert sentence(failure.value).count(". ") == 1
    assert "Insufficient Memory" in sentence(failure.value)
    assert "less context" in sentence(failure.value)
    assert failure.value.exit_code == 1


def test_weights_that_do_not_fit_are_told_alike(device):
    with device.failing(8), pytest.raises(DeviceFailed, match="smaller model"):
        load.load_target(load_golden("e2b").target)


def test_nothing_of_a_failed_turn_is_written(device, tmp_path):
    golden = load_golden("e2b")
    model = Model.load(golden.target)
    with device.failing(6), pytest.raises(DeviceFailed):
        list(model.rounds(golden.records["long"].prompt, max_tokens=COUNT))
    with pytest.raises(ValueError, match="nothing"):
        model.save_cache(tmp_path / "kv.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_failure_that_is_met_first_where_near_ties_are_counted_empties_the_cache():
    """The count waits for the last work of an answer, in 16 bits."""

    class Failed:
        def item(self) -> int:
            raise RuntimeError(WORDS)

    prompt = load_golden("e2b").records["short"].prompt
    decoder: Any = engine("e2b")
    said = decode(decoder, prompt, COUNT)
    decoder._near_ties = Failed()
    with pytest.raises(DeviceFailed, match="Insufficient Memory"):
        decoder.count_near_ties()
    assert (decoder.tokens, decoder.rows, decoder._cache.buffers) == ([], 0, [])
    assert decode(decoder, prompt, COUNT) == said
