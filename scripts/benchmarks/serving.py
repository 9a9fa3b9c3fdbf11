"""Measure `mlxmtp serve` with the built-in model: what HTTP costs, a shared prefix, other servers, and a long load.

    .venv/bin/python -m scripts.benchmarks.serving overhead          # beside the Python API, a minute
    .venv/bin/python -m scripts.benchmarks.serving prefix            # two conversations after 17,000 equal tokens
    .venv/bin/python -m scripts.benchmarks.serving peers --python .venv-peers/bin/python        # 15 minutes
    .venv/bin/python -m scripts.benchmarks.serving peers --tokens 500 -r 2 --only drafter       # one of them, a minute
    .venv/bin/python -m scripts.benchmarks.serving load --minutes 10 # 32 clients, some of which go away

Everything stays on this machine. `load` compares every text with the Python API's for the same seed and watches the
server's memory; it fails if a text differs, an answer is lost, memory grows by more than a tenth between the second and
the last fifth of the time, or the server does not end quietly.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from statistics import median
from typing import Any

from scripts.benchmarks.harness.environment import environment
from scripts.benchmarks.harness.options import say

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "assets" / "pocket" / "target"
DRAFTER = str(TARGET.with_name("drafter"))
QUESTION = "List all commands."
QUESTIONS = ("What is a drafter?", "Say hello", "Name three colours.", "What is a snapshot?", QUESTION, "What is MLX?")
TOKENS = 200


@dataclass(frozen=True, slots=True)
class Reply:
    """A streamed answer: seconds to its first text, from there to its last, and by the server's count its tokens,
    draft tokens and those of them that were accepted."""

    text: str
    first: float
    rest: float
    tokens: int
    drafted: int = 0
    accepted: int = 0

    @property
    def tps(self) -> float:
        return (self.tokens - 1) / self.rest if self.rest else 0.0


def ask(port: int, messages: Sequence[dict[str, str]], *, leave_after: int | None = None, **body: Any) -> Reply | None:
    """Ask for a stream; None if the client went away after `leave_after` pieces."""
    request = {"messages": [*messages], "stream": True, "stream_options": {"include_usage": True}, **body}
    connection = HTTPConnection("127.0.0.1", port, timeout=600)
    begun = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", json.dumps(request), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(response.read().decode())
    text, tokens, first, last = "", 0, 0.0, 0.0
    pieces, drafts = 0, (0, 0)
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        chunk = json.loads(line[6:])
        if "error" in chunk:
            raise RuntimeError(str(chunk["error"]))
        tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
        drafts = _drafts(chunk) or drafts
        for choice in chunk["choices"]:
            if piece := choice["delta"].get("content"):
                last = time.perf_counter() - begun
                first = first or last
                text += piece
                pieces += 1
        if leave_after is not None and pieces >= leave_after:
            connection.close()
            response.close()
            return None
    connection.close()
    return Reply(text, first, last - first, tokens, *drafts)


def _drafts(chunk: dict[str, Any]) -> tuple[int, int] | None:
    """Return the draft tokens and those accepted, as far as a chunk tells them: in our field or in mlx-vlm's."""
    ours, theirs = chunk.get("mlxmtp") or {}, chunk.get("timings") or {}
    if "drafted" in ours:
        return ours["drafted"], ours["accepted"]
    return (theirs["draft_n"], theirs["draft_n_accepted"]) if theirs.get("draft_n") else None


@contextmanager
def serving(command: Sequence[str], path: str = "/v1/models") -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run a server until the end of the block; `{port}` in its command is a free one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = [word.format(port=port) for word in command]
    offline = {**environment(), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(given, env=offline, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(1200):
            with suppress(OSError, HTTPException):
                connection = HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", path)
                if connection.getresponse().status == 200:
                    break
            if process.poll() is not None:
                raise RuntimeError(f"{given[0]} ended with {process.returncode}")
            time.sleep(0.2)
        else:
            raise RuntimeError(f"{given[0]} does not answer at {path}")
        yield port, process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


OURS = [sys.executable, "-m", "mlxmtp", "serve", "-m", "pocket", "--port", "{port}", "--quiet"]
PEERS = ("mlx_lm.server", "mlx_vlm.server")


def overhead(repetitions: int) -> None:
    """Compare a stream over HTTP with the Python API's, in turn; three drafts, so that both do the same work.

    Exits with 1 if the median pair is 3 % slower over HTTP, or its first text 5 ms later.
    """
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # as the server has it; MLX is not imported yet
    from mlxmtp import Params, load
    from mlxmtp.engine.events import Text

    model = load("pocket")
    messages = [{"role": "user", "content": QUESTION}]

    def by_api() -> Reply:
        begun, first, last, text = time.perf_counter(), 0.0, 0.0, ""
        answer = model.stream(messages, Params(max_tokens=TOKENS, temp=0, num_draft_tokens=3))
        for event in answer:
            if isinstance(event, Text):
                last = time.perf_counter() - begun
                first = first or last
                text += event.text
        return Reply(text, first, last - first, answer.stats.generation_tokens)

    with serving(OURS) as (port, _):
        asked: dict[str, Any] = {"temperature": 0, "max_tokens": TOKENS, "mlxmtp": {"num_draft_tokens": 3}}

        def by_http() -> Reply:
            reply = ask(port, messages, **asked)
            assert reply is not None
            return reply

        pairs = []
        for turn in range(repetitions + 3):  # each goes first in turn
            pair = [by_api(), by_http()] if turn % 2 else [by_http(), by_api()][::-1]
            pairs.append((pair[0], pair[1]))
        pairs = pairs[3:]
    assert len({one.text for pair in pairs for one in pair}) == 1
    for name, replies in zip(("Python API", "HTTP stream"), zip(*pairs, strict=True), strict=True):
        speeds, firsts = sorted(one.tps for one in replies), sorted(1e3 * one.first for one in replies)
        say(
            f"{name}: {median(speeds):.1f} tokens/s ({speeds[0]:.1f} to {speeds[-1]:.1f}), first text after "
            f"{median(firsts):.1f} ms ({firsts[0]:.1f} to {firsts[-1]:.1f}), {replies[0].tokens} tokens"
        )
    slower = 100 * (1 - median(http.tps / api.tps for api, http in pairs))
    later = 1e3 * median(http.first - api.first for api, http in pairs)
    say(f"median pair: {slower:.1f} % slower over HTTP (at most 3), first text {later:.1f} ms later (at most 5)")
    raise SystemExit(0 if slower < 3 and later < 5 else 1)


def long_text(tokens: int) -> str:
    """Return a text of about so many of the built-in model's tokens."""
    from mlxmtp.engine.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(TARGET)
    source = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    text = source * (2 + tokens // len(tokenizer.encode(source)))
    share = tokens / len(tokenizer.encode(text))
    return text[: int(share * len(text))]


def prefix(tokens: int) -> None:
    """Time the first text of a second conversation that begins with the first one's system prompt."""
    system = {"role": "system", "content": long_text(tokens)}
    with serving(OURS) as (port, _):
        for name, question in (("first", QUESTIONS[0]), ("second", QUESTIONS[1]), ("third", QUESTIONS[2])):
            reply = ask(port, [system, {"role": "user", "content": question}], max_tokens=20, temperature=0)
            assert reply is not None
            say(f"{name} conversation after about {tokens:,} equal tokens: first text after {reply.first:.2f} s")


def peers(python: Path, repetitions: int, only: str, tokens: int) -> None:
    """Ask the same of other servers with the same weights, as they come: greedy, one client."""
    lm, vlm = ([str(python), "-m", module, "--model", str(TARGET), "--port", "{port}"] for module in PEERS)
    vlm += ["--host", "127.0.0.1"]
    commands = {
        "mlxmtp serve": OURS,
        "mlxmtp serve --no-draft": [*OURS, "--no-draft"],
        "mlx_lm.server": lm,
        "mlx_vlm.server": vlm,
        "mlx_vlm.server with the drafter": [*vlm, "--draft-model", DRAFTER, "--draft-kind", "mtp"],
    }
    system = {"role": "system", "content": long_text(tokens)}
    for name, command in commands.items():
        if only not in name:
            continue
        try:
            with serving(command) as (port, _):
                say(f"{name}: {_row(port, system, repetitions)} ({tokens:,} long)")
        except (RuntimeError, OSError, HTTPException) as error:
            say(f"{name}: {error}")


def _row(port: int, system: dict[str, str], repetitions: int) -> str:
    asked: dict[str, Any] = {"model": str(TARGET), "temperature": 0, "max_tokens": TOKENS, "enable_thinking": False}
    with suppress(OSError, HTTPException, ValueError):  # mlx_lm.server lists what is in the Hugging Face cache, if any
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/v1/models")
        names = [one["id"] for one in json.loads(connection.getresponse().read())["data"]]
        asked["model"] = next((one for one in names if one in (str(TARGET), "pocket")), asked["model"])
    question = {"role": "user", "content": QUESTION}
    short = [ask(port, [question], **asked) for _ in range(repetitions + 2)][2:]
    cold = ask(port, [system, question], **asked)
    warm = [ask(port, [system, {"role": "user", "content": one}], **asked) for one in QUESTIONS[:3]]
    found = [one for one in short if one is not None]
    speeds = sorted(one.tps for one in found)
    assert cold is not None
    firsts = sorted(one.first for one in warm if one is not None)
    return (
        f"{median(speeds):.1f} tokens/s ({speeds[0]:.1f} to {speeds[-1]:.1f}; {found[0].tokens} tokens, "
        f"{found[-1].accepted} of {found[-1].drafted} drafts accepted), first text "
        f"{1e3 * median(one.first for one in found):.0f} ms; after a long new text {cold.first:.2f} s, "
        f"after it in other conversations {median(firsts):.2f} s"
    )


class Load:
    """Clients that ask at once for a while."""

    def __init__(self, port: int, expected: dict[tuple[str, int], str], until: float) -> None:
        self._port, self._expected, self._until = port, expected, until
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._lock = threading.Lock()

    def client(self, number: int) -> None:
        """Ask until the time is over; every third request is given up in the middle, or before a word has come."""
        chance = random.Random(number)
        while time.monotonic() < self._until:
            question, seed = chance.choice([*self._expected])
            leave = chance.choice((0, 1, 5)) if chance.random() < 1 / 3 else None
            try:
                reply = self._ask(question, seed, leave)
            except (RuntimeError, OSError, HTTPException) as error:
                reply, what = None, f"failed: {error}"
            else:
                what = "left" if reply is None else "answered"
            with self._lock:
                self.counts[what] += 1
                if reply is not None and reply.text != self._expected[question, seed]:
                    self.wrong.append(f"{question} {seed}: {reply.text!r}")

    def _ask(self, question: str, seed: int, leave: int | None) -> Reply | None:
        if leave == 0:  # gone before the answer has begun
            with socket.create_connection(("127.0.0.1", self._port), timeout=60) as peer:
                body = json.dumps({"messages": [{"role": "user", "content": question}]}).encode()
                head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
                peer.sendall(head.encode() + body)
            return None
        return ask(self._port, _question(question), leave_after=leave, **_asked(seed))


def _question(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _asked(seed: int) -> dict[str, Any]:
    return {"temperature": 0.8, "seed": seed, "max_tokens": 40}


def load(minutes: float, clients: int) -> None:
    """Keep the server busy; exit with 1 if anything was lost or wrong."""
    from mlxmtp import Params
    from mlxmtp import load as load_model
    from mlxmtp.engine.events import Text

    model = load_model("pocket")
    expected = {}
    for question in QUESTIONS:
        for seed in (1, 2, 3):
            answer = model.stream(_question(question), Params(max_tokens=40, temp=0.8, seed=seed))
            expected[question, seed] = "".join(event.text for event in answer if isinstance(event, Text))
    with serving(OURS) as (port, process):
        run = Load(port, expected, time.monotonic() + 60 * minutes)
        threads = [threading.Thread(target=run.client, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        memory = []
        while any(thread.is_alive() for thread in threads):
            memory.append(_resident(process.pid))
            say(f"{time.strftime('%H:%M:%S')} {memory[-1]:.0f} MB, {dict(run.counts)}, {len(run.wrong)} wrong")
            for thread in threads:
                thread.join(30 / clients)
        alone = ask(port, _question(QUESTIONS[0]), **_asked(1))
        quiet = process.poll() is None
    early, late = median(memory[len(memory) // 5 :][: len(memory) // 5 + 1]), median(memory[-len(memory) // 5 :])
    say(f"memory in the second fifth {early:.0f} MB, in the last {late:.0f} MB, at most {max(memory):.0f} MB")
    lost = {what: count for what, count in run.counts.items() if what.startswith("failed")}
    flat = late <= 1.1 * early
    done = run.counts["answered"] > 0 and alone is not None and alone.text == expected[QUESTIONS[0], 1]
    fine = quiet and done and flat and not lost and not run.wrong and process.returncode == 0
    say(f"{dict(run.counts)}; {len(run.wrong)} wrong; ended with {process.returncode}: {'fine' if fine else 'FAILED'}")
    for one in run.wrong[:5]:
        say(one)
    raise SystemExit(0 if fine else 1)


def _resident(pid: int) -> float:
    """Return a process's resident memory in MB."""
    said = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return int(said or 0) / 1024


def main() -> None:
    """Run one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["overhead", "prefix", "peers", "load"])
    parser.add_argument("--python", type=Path, default=ROOT / ".venv-peers/bin/python", help="with mlx-lm and mlx-vlm")
    parser.add_argument("--only", default="", metavar="TEXT", help="peers whose name has it, `drafter` say")
    parser.add_argument("-r", "--repetitions", type=int, default=9, help="(default: 9)")
    parser.add_argument("--minutes", type=float, default=10.0, help="of load (default: 10)")
    parser.add_argument("--clients", type=int, default=32, help="(default: 32)")
    parser.add_argument("--tokens", type=int, help="of the shared beginning (default: 17000, of peers 2000)")
    given = parser.parse_args()
    if given.what == "overhead":
        overhead(given.repetitions)
    elif given.what == "prefix":
        prefix(given.tokens or 17_000)
    elif given.what == "peers":
        peers(given.python, given.repetitions, given.only, given.tokens or 2000)
    else:
        load(given.minutes, given.clients)


if __name__ == "__main__":
    main()
