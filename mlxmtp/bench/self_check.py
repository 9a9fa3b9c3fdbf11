"""`doctor --check`: what this machine computes, compared with its own CPU, and how long that takes."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from mlxmtp.decode.compile import Rounds
from mlxmtp.decode.decoder import Decoder
from mlxmtp.decode.exact import probe
from mlxmtp.decode.round import State, make_parts
from mlxmtp.hub.registry import entries
from mlxmtp.hub.store import built_in
from mlxmtp.machine.checks import Check, Verdict
from mlxmtp.machine.pace import Measured, Pace, Products
from mlxmtp.models.config import FULL, ModelConfig
from mlxmtp.models.device import backend, compute_dtype, failure, find_compiler
from mlxmtp.models.drafter import Drafter
from mlxmtp.models.fused import usable
from mlxmtp.models.kv_cache import FixedView, KVCache, PromptView
from mlxmtp.models.linear import Linear, Matrix
from mlxmtp.models.load import assemble, load_drafter, load_target
from mlxmtp.models.target import Target
from mlxmtp.models.tensors import NORM, Quantization, tensors

FAR = 0.1
"""Largest difference of scores between two devices, relative to the largest score: in 16 bits some 0.02 are usual."""

RECORDED = Path(__file__).with_name("recorded.json")
"""Scores of the small networks as a CPU under Linux computes them; `scripts/record_check.py` writes them."""

ROWS = (1, 2, 3, 4, 5, 6, 8, 9, 16)
_PROMPT = [5 + (17 * i + i * i // 3) % 900 for i in range(150)]
_TOKENS = 32
_WIDTH, _WINDOW, _VOCABULARY = 256, 16, 1024
_SHORT = 24  # tokens of the prompt of a small network: more than its window
_COLUMNS = 16  # of the scores are recorded
_GIGABYTE = 1e9
_TIMES = 5
_QUANTIZATION = Quantization(4, 64)


def measure() -> Iterator[Check]:
    """Yield what was found, one after the other; half a minute on a CPU, and some seconds where kernels are built."""
    find_compiler()  # now: a Ctrl-C that comes with it ends no check
    yield from _guarded("memory limits", _memory_limits)
    for family in dict.fromkeys(entry.family for entry in entries()):
        yield from _guarded(f"network {family}", partial(_network, family))
    target = load_target(built_in("target"))
    drafter = load_drafter(built_in("drafter"), target)
    yield from _guarded("drafted text", lambda: _drafted(target, drafter))
    yield from _guarded("exact text", lambda: _exact_text(target))
    yield from _guarded("kernels", lambda: _build(target, drafter))
    yield from _guarded("bandwidth", _bandwidth)
    yield from _guarded("4-bit products by rows", lambda: _products(quantized=True))
    yield from _guarded("plain products by rows", lambda: _products(quantized=False))
    yield from _guarded("passes by rows", lambda: _passes(target))


def measured(checks: Iterable[Check]) -> Measured | None:
    """Return what later processes can begin with; None where a check failed."""
    figures = {one.what: one.figures for one in checks if one.verdict != "bad"}
    quantized, plain = (figures.get(f"{what} products by rows") for what in ("4-bit", "plain"))
    exact = figures.get("exact text")
    if quantized is None or plain is None or exact is None:
        return None
    return Measured(Pace(_of_figures(quantized), _of_figures(plain), backend() == "CPU"), exact["available"])


def _of_figures(figures: Mapping[str, Any]) -> Products:
    """Return products whose further rows take no less time, whatever the clock said."""
    costs = accumulate(figures["rows"].values(), max)
    return Products(figures["gb_per_s"] * _GIGABYTE, dict(zip(map(int, figures["rows"]), costs, strict=True)))


def _guarded(what: str, check: Callable[[], Check]) -> Iterator[Check]:
    """Yield the result of one check, or that MLX failed in it."""
    try:
        yield check()
    except RuntimeError as error:
        step = "If that is not it: report it with the output of mlxmtp doctor --check --json."
        yield Check(what, "bad", str(failure(error)), step)


def _memory_limits() -> Check:
    limits = {name: value for name, value in mx.device_info().items() if isinstance(value, int)}
    names = {"max_recommended_working_set_size": "recommended for a model", "max_buffer_length": "largest buffer"}
    told = [f"{title} {limits[name] / _GIGABYTE:.1f} GB" for name, title in names.items() if name in limits]
    return Check("memory limits", "ok", ", ".join(told) or "the device names none", figures=limits)


def _network(family: str) -> Check:
    """Compare a small network of the family, in 4 bits, with recorded scores, and a GPU's with those of the CPU."""
    config = _small(next(entry for entry in entries() if entry.family == family).target_config())
    weights = _random(config)
    here = there = _scores(Target(assemble(config, dict(weights)), config))
    if backend() != "CPU":
        with _on_cpu():
            there = _scores(Target(assemble(config, dict(weights)), config))
    recorded = mx.array(json.loads(RECORDED.read_text(encoding="utf-8"))[family])
    size = mx.abs(there).max()
    far = float(mx.abs(here - there).max() / size)
    drift = float(mx.abs(excerpt(here) - recorded).max() / size)
    same = float((mx.argmax(here, axis=-1) == mx.argmax(there, axis=-1)).mean())
    sound = far < FAR and drift < FAR  # not so for a NaN
    beside = "" if here is there else f"; {far:.0e} from the CPU's, tokens {same:.0%}"
    return Check(
        f"network {family}",
        "ok" if sound else "bad",
        f"{drift:.0e} from recorded scores{beside}",
        None if sound else "This device computes wrong numbers: update macOS and mlx, and report it.",
        {"difference": far, "from_recorded": drift, "same": same},
    )


def excerpt(scores: mx.array) -> mx.array:
    """Return what is recorded of scores [L, V]: some columns."""
    return scores[:, :: _VOCABULARY // _COLUMNS]


def record() -> dict[str, list[list[float]]]:
    """Return the scores of every small network on this machine's CPU, for `recorded.json`."""
    found = {}
    with _on_cpu():
        for entry in {entry.family: entry for entry in entries()}.values():
            config = _small(entry.target_config())
            scores = excerpt(_scores(Target(assemble(config, _random(config)), config)))
            found[entry.family] = [
                [round(value, 4) for value in row] for row in cast("list[list[float]]", scores.tolist())
            ]
    return found


def _small(wide: ModelConfig) -> ModelConfig:
    """Return the family's configuration with its heads and kinds of layers, but few layers and little width."""
    shared = bool(wide.text.get("num_kv_shared_layers"))
    layers = wide.layer_types[: (wide.layer_types.index(FULL) + 1) * (2 if shared else 1)]
    text: dict[str, Any] = {
        **wide.text, "hidden_size": _WIDTH, "intermediate_size": _WIDTH, "vocab_size": _VOCABULARY,
        "vocab_size_per_layer_input": _VOCABULARY, "sliding_window": _WINDOW,
        "layer_types": layers, "num_hidden_layers": len(layers), "final_logit_softcapping": 30.0,
        "num_kv_shared_layers": len(layers) // 2 if shared else 0,
    }  # fmt: skip
    if text.get("enable_moe_block"):
        text |= {"num_experts": 16, "top_k_experts": 4, "moe_intermediate_size": _WIDTH}
    if text.get("hidden_size_per_layer_input"):
        text["hidden_size_per_layer_input"] = _QUANTIZATION.group_size
    return replace(wide, text=text, raw={**wide.raw, "quantization": _QUANTIZATION.arguments})


def _random(config: ModelConfig) -> dict[str, mx.array]:
    """Return a checkpoint with weights from a seed, matrices quantized."""
    found: dict[str, mx.array] = {}
    key = mx.random.key(7)
    with _on_cpu():
        for tensor in tensors(config):
            key, own = mx.random.split(key)
            if tensor.kind == NORM:
                found[tensor.name] = mx.random.uniform(0.5, 1.0, tensor.shape, key=own).astype(mx.bfloat16)
                continue
            value = (mx.random.normal(tensor.shape, key=own) * tensor.shape[-1] ** -0.5).astype(mx.bfloat16)
            if not tensor.quantizable:
                found[tensor.name] = value
                continue
            parts = mx.quantize(value, **_QUANTIZATION.arguments)
            found |= dict(zip([tensor.name, f"{tensor.module}.scales", f"{tensor.module}.biases"], parts, strict=True))
        mx.eval(found)
    return found


def _scores(target: Target) -> mx.array:
    """Return the scores of a prompt, of five rows after it and of one more, [30, V] float32."""
    prompt = _PROMPT[:_SHORT]
    cache = KVCache(target.cache_spec, target.dtype)
    cache.reserve(len(prompt) + max(ROWS))
    view: Any = PromptView(target.cache_spec, cache.buffers, 0, len(prompt))
    found = [target.logits(target.hidden(mx.array(prompt), view))]
    at = len(prompt)
    for rows in (5, 1):
        view = FixedView(target.cache_spec, view.buffers, mx.array([at], mx.int32), rows)
        found.append(target.logits(target.hidden(mx.array(_PROMPT[:rows]), view)))
        at += rows
    scores = mx.concatenate(found)
    mx.eval(scores)
    return scores


@contextmanager
def _on_cpu() -> Iterator[None]:
    before = mx.default_device()
    mx.set_default_device(mx.Device(mx.cpu))
    try:
        yield
    finally:
        mx.set_default_device(before)


def _drafted(target: Target, drafter: Drafter) -> Check:
    """Write the built-in model's text with draft lengths 0, 2 and 4."""
    texts = {}
    for k in (0, 2, 4):
        decoder = Decoder(target, drafter, compiled="never")
        rounds = decoder.rounds(_PROMPT, max_tokens=_TOKENS, num_draft_tokens=k)
        texts[k] = [token for one in rounds for token in one.tokens]
    first = {k: next((i for i, pair in enumerate(zip(text, texts[0], strict=False)) if pair[0] != pair[1]), None)
             for k, text in texts.items()}  # fmt: skip
    differing = {k: at for k, at in first.items() if at is not None}
    figures = {"first_difference": {str(k): at for k, at in first.items()}, "tokens": _TOKENS}
    if not differing:
        return Check("drafted text", "ok", f"the same as without a drafter, {_TOKENS} tokens", figures=figures)
    told = ", ".join(f"from token {at} on with {k} drafts" for k, at in differing.items())
    advice = "Two tokens were as close as the last bits, which depend on the rows of a pass. It is rare, and no fault."
    return Check("drafted text", "note", f"differs {told}", advice, figures)


def _exact_text(target: Target) -> Check:
    """Look for the limits within which texts are exact (`--exact`), and whether compiled rounds keep to them."""
    found = probe(target)
    if isinstance(found, str):
        advice = None if backend() == "CPU" else "Where two tokens are as close as the last bits, drafts may decide."
        verdict: Verdict = "ok" if advice is None else "note"
        return Check("exact text", verdict, f"cannot be had: {found}", advice, {"available": False})
    texts = []
    for compiled in ("never", "always"):
        decoder = Decoder(target, compiled=compiled, passes=found)
        rounds = decoder.rounds(_PROMPT, max_tokens=_TOKENS)
        texts.append([token for one in rounds for token in one.tokens])
        decoder.close()
    same = "" if texts[0] == texts[1] else "; compiled rounds write another text than others"
    told = (
        f"passes of {found.fewest} to {found.most} rows have equal bits, the shortest costs {found.cost:.2f} of one row"
    )
    figures = {"available": True, "fewest": found.fewest, "most": found.most, "cost": found.cost, "compiled": not same}
    return Check("exact text", "note" if same else "ok", told + same, figures=figures)


def _build(target: Target, drafter: Drafter) -> Check:
    """Time the first use of a compiled round, which builds its kernels unless the system has kept them."""
    cache = KVCache(target.cache_spec, target.dtype)
    cache.reserve(1)
    hidden = mx.zeros((1, target.config.hidden_size), target.dtype)
    function, _ = Rounds(target, drafter, "always").get(3, (0.0, 1.0, 0, 0.0))

    def run() -> float:
        state = State(mx.zeros((1,), mx.int32), hidden, mx.ones((1,), mx.int32))
        begin = time.perf_counter()
        mx.eval(function(state, cache.buffers, mx.zeros((2,), mx.uint32)))
        return time.perf_counter() - begin

    first, again = run(), run()
    found = f"{max(first - again, 0):.1f} s to build those of a round, {again * 1e3:.1f} ms to run it"
    own = usable(target.dtype, target.config.hidden_size, target.config.eps)
    if backend() == "Metal":
        found += f"; our kernel of norms and sum {'is used' if own else 'is not used: it computes otherwise here'}"
    return Check("kernels", "ok", found, figures={"build_s": max(first - again, 0), "round_s": again, "own": own})


def _bandwidth() -> Check:
    data = mx.zeros((2**27,), mx.uint32)  # 512 MB
    mx.eval(data)
    speed = data.nbytes / min(_seconds(lambda: mx.max(data)) for _ in range(5)) / _GIGABYTE
    return Check("bandwidth", "ok", f"{speed:.0f} GB/s read on {backend()}", figures={"gb_per_s": speed})


def _products(quantized: bool) -> Check:
    """Time products by the number of rows; on a GPU the matrices are together larger than its cache."""
    width, count = (1024, 4) if backend() == "CPU" else (4096, 8)
    dtype = compute_dtype(mx.bfloat16)
    values = [mx.full((width, width), 0.01 * i, dtype) for i in range(count)]
    how = _QUANTIZATION if quantized else None
    matrices = [Matrix(tuple(mx.quantize(one, **how.arguments)) if how else (one,), how) for one in values]
    mx.eval([matrix.arrays for matrix in matrices])
    layers = [Linear(matrix) for matrix in matrices]
    times = _by_rows(lambda rows: [layer(mx.ones((rows, width), dtype)) for layer in layers])
    speed = sum(array.nbytes for matrix in matrices for array in matrix.arrays) / times[1] / _GIGABYTE
    what = "4-bit products" if quantized else "plain products"
    return _of_rows(what, times, f"{speed:.1f} GB/s in one row; ", {"gb_per_s": speed})


def _passes(target: Target) -> Check:
    """Time compiled passes of the built-in model by the number of rows."""
    cache = KVCache(target.cache_spec, target.dtype)
    cache.reserve(max(ROWS))
    parts = make_parts(target, None, (0.0, 1.0, 0, 0.0), compiled=True)

    def check(rows: int) -> Any:
        found = parts.check(
            mx.ones((rows,), mx.int32), mx.ones((1,), mx.int32), cache.buffers, mx.zeros((2,), mx.uint32)
        )
        cache.buffers = found[1]
        return found

    times = _by_rows(check)
    return _of_rows("passes", times, f"the built-in model's take {times[1] * 1e3:.1f} ms; ", {"ms": times[1] * 1e3})


def _by_rows(run: Callable[[int], Any]) -> dict[int, float]:
    times = {}
    for rows in ROWS:
        _seconds(partial(run, rows))  # builds kernels
        times[rows] = min(_seconds(partial(run, rows)) for _ in range(_TIMES))  # what else runs here only adds
    return times


def _of_rows(what: str, times: Mapping[int, float], told: str, figures: Mapping[str, Any]) -> Check:
    relative = {str(rows): seconds / times[1] for rows, seconds in times.items()}
    found = told + " ".join(f"{rows}:{cost:.2f}" for rows, cost in list(relative.items())[1:])
    return Check(f"{what} by rows", "ok", found, figures={**figures, "rows": relative})


def _seconds(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    mx.eval(run())
    return time.perf_counter() - begin
