"""The divergence of a conversion from its source on one text; they are in memory one after the other."""

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx

from mlxmtp.convert.run import Agreement
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.errors import DeviceFailed, LoadError, TooLarge
from mlxmtp.machine.chip import this_machine
from mlxmtp.machine.memory import need
from mlxmtp.models.config import read_config
from mlxmtp.models.device import memory_limit
from mlxmtp.models.kv_cache import KVCache, PromptView
from mlxmtp.models.load import load_drafter, load_target
from mlxmtp.models.safetensors import read_folder
from mlxmtp.units import format_bytes

# Prose, a list, code, a question.
_TEXT = """\
The harbour master keeps a book in which every ship is written down with the hour it came and what it carried. In the \
autumn of that year there were fewer entries than before: grain from the north, two loads of timber, one of salt.

1. Put the kettle on.
2. Warm the pot, then add one spoon of tea for each cup.
3. Wait four minutes.

def mean(values: list[float]) -> float:
    if not values:
        raise ValueError("no values")
    return sum(values) / len(values)

What is the capital of Portugal, and on which river does it lie? Lisbon lies on the Tagus, a few miles from the sea.
"""
_TOKENS = 192  # of it at most
_FEW = 24  # tokens that are computed in float16: the largest values come with the first ones
_ROWS = 16  # positions compared at a time: a row of the full vocabulary is a megabyte


def compare_on_text(source: Path, result: Path) -> Agreement:
    """Compare two targets on a text, without a tokenizer on a fixed row of tokens.

    Raises TooLarge, DeviceFailed, and LoadError for an unusable result.
    """
    configs = [read_config(folder) for folder in (source, result)]
    vocabulary = configs[0].vocab_size
    text = Tokenizer.load(source).encode(_TEXT) if (source / "tokenizer.json").is_file() else []
    ids = [2, *text][:_TOKENS]
    if not text or max(ids) >= vocabulary:  # no tokenizer, or another model's
        ids = [2, *(3 + at * 7919 % (vocabulary - 3) for at in range(_TOKENS // 2))]
    logits = 4 * len(ids) * vocabulary * 4  # of both, and what the comparison makes of them
    needed = max(need(config, None, len(ids)).total for config in configs) + logits
    usable = memory_limit() or this_machine().usable
    if needed > usable:
        raise TooLarge(
            f"Not compared with its source: that takes {format_bytes(needed)} of memory, "
            f"and {format_bytes(usable)} can be used here."
        )
    try:
        return compare(source, result, ids)
    except RuntimeError as error:  # of computing, of loading
        found = "; ".join(str(error.__cause__ or error).splitlines()[-2:])
        raise DeviceFailed(f"Not compared with its source: MLX could not compute that here ({found}).") from error


def compare(source: Path, result: Path, ids: Sequence[int]) -> Agreement:
    """Compare two targets on ``ids``, and load the result's drafter. Raises LoadError for an unusable result."""
    wanted = text_logits(source, ids)
    mx.clear_cache()  # what the source took is free for the result
    got = text_logits(result, ids, drafter=result / "drafter")
    if not mx.isfinite(got).all().item():
        raise LoadError(f"The conversion in {result} computes values that are no numbers. Choose other --q-* flags.")
    stored = {one.layout.dtype for name, one in read_folder(result).items() if name.endswith("norm.weight")}
    # A CPU has computed in float32, a GPU does so in float16.
    if "F16" in stored and not mx.isfinite(text_logits(result, ids[:_FEW], widen=False)).all().item():
        raise LoadError(f"In float16 values of the conversion in {result} overflow on a GPU: take --dtype bfloat16.")
    divergence, same = 0.0, 0
    for start in range(0, len(ids), _ROWS):
        rows = slice(start, start + _ROWS)
        p, q = (logits[rows] - mx.logsumexp(logits[rows], axis=-1, keepdims=True) for logits in (wanted, got))
        divergence += float(mx.sum(mx.exp(p) * (p - q)))
        same += int(mx.sum(mx.argmax(p, axis=-1) == mx.argmax(q, axis=-1)))
    return Agreement(max(0.0, divergence / len(ids)), same / len(ids), len(ids))


def text_logits(folder: Path, ids: Sequence[int], *, drafter: Path | None = None, widen: bool = True) -> mx.array:
    """Return the logits [L, V] in float32 of ``ids`` [L]; a ``drafter`` that is there is loaded as a check.

    ``widen``: see `load_target`.
    """
    network = load_target(folder, widen=widen)
    if drafter is not None and (drafter / "config.json").is_file():
        load_drafter(drafter, network)
    cache = KVCache(network.cache_spec, network.dtype)
    cache.reserve(len(ids))
    view = PromptView(network.cache_spec, cache.buffers, 0, len(ids))
    logits = network.logits(network.hidden(mx.array(list(ids)), view))
    mx.eval(logits)
    return logits
