"""Compiling behind the scenes: it takes over, it can fail, and it never outlives the process badly."""

import gc
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxmtp.decode.compile import Rounds
from mlxmtp.decode.decoder import Decoder
from mlxmtp.decode.round import make_parts
from mlxmtp.decode.sampling import Filters, Sampling
from tests.golden import load_golden
from tests.networks import decode, drafter, target

ONE_ROUND = """
from pathlib import Path
from mlxmtp.decode.decoder import Decoder
from mlxmtp.models.load import load_drafter, load_target
from tests.golden import load_golden
golden = load_golden("e2b")
target = load_target(golden.target)
decoder = Decoder(target, load_drafter(golden.drafter, target))
rounds = decoder.rounds(golden.records["long"].prompt, max_tokens=40, num_draft_tokens=3)
print(next(rounds).tokens[0], next(rounds).tokens[0])
"""

LAST_WORD = """
import atexit, sys
atexit.register(lambda: open(sys.argv[1], "a").write("end\\n"))  # the first to be called
"""

LET_GO = """
import gc, weakref
rounds.close()
decoder.close()
reference = weakref.ref(target)
del rounds, decoder, target
gc.collect()
print("gone" if reference() is None else gc.get_referrers(reference()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["with a compiler", "without a compiler"])
def test_a_process_that_ends_while_kernels_are_built_ends_cleanly(compiler, tmp_path):
    """An empty kernel cache, two rounds, and out: right tokens, exit code 0, not a word on stderr."""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    if compiler == "without a compiler":
        environment["PATH"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", ONE_ROUND],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    greedy = load_golden("e2b").records["long"].greedy
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [str(greedy[0]), str(greedy[1])], "")


def test_traces_of_many_temperatures_do_not_pile_up():
    rounds = Rounds(target("e2b"), drafter("e2b"), "always")
    kinds = [Sampling(temp=1 + at / 100).filters for at in range(40)]
    for kind in kinds:
        rounds.get(2, kind, 256)
        rounds.get(2, kinds[0], 256)
    assert len(rounds._parts) < 20
    assert rounds.traced(kinds[0], 256) == {2}  # used all the time
    assert rounds.traced(kinds[-1], 256) == {2}
    assert not rounds.traced(kinds[1], 256)
    rounds.close()


def test_kinds_whose_first_rounds_were_not_compiled_do_not_push_out_the_one_in_use():
    class Late(Rounds):
        """Their kernels are there when a kind is used again."""

        def built(self, k, filters):
            known = filters in seen
            seen.add(filters)
            return known

    seen, rounds = set(), Late(target("e2b"), drafter("e2b"), "background")
    kinds = [Sampling(temp=1 + at / 100).filters for at in range(40)]
    for kind in kinds:
        for used in (kind, kind, kinds[0]):
            rounds.get(2, used, 256)
        assert rounds.traced(kinds[0], 256) == {2}
    assert len(rounds._parts) < 40
    rounds.close()


@pytest.mark.slow
def test_a_process_that_ends_waits_for_one_kernel_at_most(tmp_path):
    """A round needs some forty runs of the compiler, which is found through PATH until the process ends."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++ here")
    log, wrapper = tmp_path / "log", tmp_path / "g++"
    wrapper.write_text(f'#!/bin/sh\necho run >> {log}\nexec {compiler} "$@"\n')
    wrapper.chmod(0o755)
    subprocess.run(
        [sys.executable, "-c", ONE_ROUND + LAST_WORD, str(log)],
        env=os.environ | {"TMPDIR": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    lines = log.read_text().split()
    assert len(lines) - lines.index("end") - 1 <= 1


def test_a_failed_compilation_leaves_the_uncompiled_rounds(monkeypatch):
    record = load_golden("e2b").records["long"]

    def broken(*_: object) -> None:
        raise RuntimeError("[Compiled::eval_cpu] Failed to compile")

    monkeypatch.setattr(Rounds, "_build", broken)
    monkeypatch.setattr(Rounds, "_mark", lambda *_: None)
    decoder = Decoder(target("e2b"), drafter("e2b"))
    assert decode(decoder, record.prompt, 40, num_draft_tokens=3) == record.greedy
    assert not decoder._has_compiled


def test_kernels_whose_compiler_was_ended_are_built_after_all(monkeypatch):
    """As by a Ctrl-C that stopped the answer: the next one of the conversation is a compiled one."""
    tried: list[int] = []

    def build(_: Rounds, k: int, __: object) -> None:
        tried.append(k)
        if len(tried) == 1:
            raise RuntimeError("[Compile::eval_cpu] Failed to compile")

    monkeypatch.setattr(Rounds, "_build", build)
    monkeypatch.setattr(Rounds, "_mark", lambda *_: None)
    decoder = Decoder(target("e2b"), drafter("e2b"))
    decoder._rounds.build(3, Sampling().filters)
    wait_for_the_compiled(decoder)
    assert tried == [2, 2]


@pytest.mark.few(5)
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temp=0.9, seed=4)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("drafts", [0, 1, 4, 8, "auto"])
@pytest.mark.parametrize("in_flight", [0, 1])
def test_a_length_is_traced_beside_a_round_of_another(drafts, sampling, in_flight, monkeypatch):
    """Where kernels are built: no uncompiled round, no automatic length that has to wait for its trace, one text."""
    record = load_golden("e2b").records["long"]
    plain = decode(Decoder(target("e2b"), compiled="never"), record.prompt, 60, sampling=sampling)
    monkeypatch.setattr("mlxmtp.decode.compile.mx.compile", lambda function: function)
    monkeypatch.setattr("mlxmtp.decode.decoder.AHEAD", 1)
    decoder = Decoder(target("e2b"), drafter("e2b"), in_flight=in_flight)
    rounds = decoder._rounds
    rounds._asked = rounds._ready = {(kind, sampling.filters) for kind in range(3)}
    used: dict[int, list[int]] = {}  # by capacity

    def seen(k: int, filters: Filters, capacity: int, *, drafting: bool = True, real=rounds.get) -> object:
        function, compiled = real(k, filters, capacity, drafting=drafting)
        assert compiled
        used.setdefault(capacity, []).extend([k] * drafting)
        return function, compiled

    def traced(k: int, filters: Filters, buffers: list[mx.array], capacity: int, real=rounds.trace) -> None:
        assert used[capacity]
        assert k not in used[capacity]
        real(k, filters, buffers, capacity)
        beside.add((k, capacity))

    beside: set[tuple[int, int]] = set()
    rounds.get, rounds.trace = seen, traced  # type: ignore[method-assign, assignment]
    for again in (drafts, "auto"):
        options = {"num_draft_tokens": again, "sampling": sampling, "draft_from": ("mtp", "copy")}
        assert decode(decoder, record.prompt, 60, **options) == plain
    if drafts == "auto":
        assert all((k, capacity) in beside for capacity, ks in used.items() for k in ks if k != ks[0])


@pytest.mark.parametrize("in_flight", [0, 1])
def test_a_longer_round_than_was_wanted_stays_within_its_buffers(in_flight, monkeypatch):
    """Near the end of a buffer a short round is wanted, which is not traced: the long one that runs needs its rows."""
    monkeypatch.setattr("mlxmtp.decode.compile.mx.compile", lambda function: function)
    monkeypatch.setattr("mlxmtp.decode.decoder.AHEAD", 1)
    prompt = (load_golden("e2b").records["long"].prompt * 5)[:220]
    engine = Decoder(target("e2b"), drafter("e2b"), in_flight=in_flight)
    engine._rounds._asked = engine._rounds._ready = {(kind, Sampling().filters) for kind in range(3)}
    wanted = set()

    def choose(_room, _traced):
        ahead = sum(one.k + 1 for one in engine._sent)
        wanted.add(8 if len(engine.tokens) + ahead + 8 <= engine._cache.capacity else 0)
        return max(wanted) if len(wanted) == 1 else min(wanted)

    monkeypatch.setattr(type(engine.depth), "choose", lambda _, room, traced=None: choose(room, traced))
    said: list[int] = []
    for one in engine.rounds(prompt, max_tokens=80):
        assert engine._cache.newest < engine._cache.capacity
        said += one.tokens
    assert wanted == {0, 8}
    assert said == decode(Decoder(target("e2b"), compiled="never"), prompt, 80)


def test_traces_of_many_capacities_do_not_pile_up():
    rounds = Rounds(target("e2b"), drafter("e2b"), "always")
    kind = Sampling().filters
    for number in range(200):
        rounds.get(2, kind, 256 * number)
        assert rounds.traced(kind, 256 * number) == {2}
    assert len(rounds._checks) <= 24


def test_the_time_of_who_reads_is_not_that_of_a_round(monkeypatch):
    """A round in flight is ready when its reader comes back."""
    now, about = [0.0], dict[str, Any](max_tokens=24, num_draft_tokens=0)
    engine = Decoder(target("e2b"), drafter("e2b"), in_flight=1, compiled="never")

    def advance(*asked, real=engine._advance):
        now[0] += 1.0
        return real(*asked)

    engine._advance = advance  # type: ignore[method-assign]
    monkeypatch.setattr("mlxmtp.decode.decoder.time.perf_counter", lambda: now[0])
    for number, _ in enumerate(engine.rounds(load_golden("e2b").records["long"].prompt, **about)):
        now[0] += 10.0 * (number % 2)
    assert engine.depth._times.plain() == 1.0


def wait_for_the_compiled(decoder: Decoder) -> None:
    thread = decoder._rounds._thread
    while not decoder._rounds._ready:
        assert thread is not None
        assert thread.is_alive()
        thread.join(0.05)


@pytest.mark.slow
def test_the_compiled_round_takes_over_with_the_same_text():
    record = load_golden("e2b").records["long"]
    decoder = Decoder(target("e2b"), drafter("e2b"))
    decode(decoder, record.prompt, 2, num_draft_tokens=3)
    wait_for_the_compiled(decoder)
    assert decode(decoder, record.prompt, 40, num_draft_tokens=3) == record.greedy
    assert decoder._has_compiled


@pytest.mark.slow
def test_the_thread_keeps_no_trace(monkeypatch):
    """MLX drops a thread's traces after the thread's end: with Python gone by then, the process aborts."""
    made = []

    def make(*arguments, **options):
        parts = make_parts(*arguments, **options)

        def check(*given):
            return parts.check(*given)

        made.append(weakref.ref(check))
        return parts._replace(check=check)

    monkeypatch.setattr("mlxmtp.decode.compile.make_parts", make)
    monkeypatch.setattr(Rounds, "_mark", lambda *_: None)  # nobody says that the kernels are there
    decoder = Decoder(target("e2b"), drafter("e2b"))
    decode(decoder, load_golden("e2b").records["long"].prompt, 2, num_draft_tokens=3)
    wait_for_the_compiled(decoder)
    gc.collect()
    assert sorted(one() is None for one in made) == [False, True]  # the main thread's, and the one that warmed


@pytest.mark.slow
def test_a_closed_decoder_lets_go_of_the_networks():
    """In a process of its own: /model must not keep the model before."""
    done = subprocess.run(
        [sys.executable, "-c", ONE_ROUND + LET_GO],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert (done.returncode, done.stdout.split()[2:], done.stderr) == (0, ["gone"], "")
