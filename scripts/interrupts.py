"""Interrupt the program at random moments, several at once, and count how it ends.

    python -m scripts.interrupts                      1,000 runs of `ask`, three at a time, Ctrl-C in the first 1.5 s
    python -m scripts.interrupts -n 200 --how TERM --seconds 4
    python -m scripts.interrupts -n 200 --command turn --seconds 6     Ctrl-C after a question in `chat`
    python -m scripts.interrupts -n 200 --command pull                 or convert, or bench
    python -m scripts.interrupts -n 1000 --command nothing             a Python program that hears Ctrl-C at once

Each run has a terminal of its own, as a person's: Ctrl-C reaches everything that runs in it, compilers of kernels too.
A run is right if it ends with 130 or by the signal, and if the terminal shows no word of Python, MLX or C++. What was
over before the signal came is counted as such, and ends with 0: so does one that had shown its whole answer, for the
system takes a while to clear the memory of a process that has ended. A conversation, which Ctrl-C does not end, is left
after it. Words of the interpreter before it has come to the first line of mlxmtp are counted apart: every program
in Python has them, and `nothing` says how many. Every third run has no compiled kernels, so that some are being built.
"""

import argparse
import os
import pty
import random
import re
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path

from tests.hub.hub_server import Hub

WORDS = re.compile(r"Traceback|Exception|KeyboardInterrupt|terminate|Abort|Fatal|Segmentation|Error|core dumped|mutex")
START = "import sys; from mlxmtp.__main__ import main; sys.exit(main())"  # as the installed command does
NOTHING = "import _signal; _signal.signal(_signal.SIGINT, _signal.SIG_DFL); import time; time.sleep(2)"
QUESTION = "What is speculative decoding?"
ROOT = Path(__file__).parents[1]
COMMANDS = {
    "ask": ["ask", "--temp", "0", QUESTION],
    "save": ["ask", "--temp", "0", "--save", QUESTION],
    "chat": ["chat"],
    "turn": ["chat"],
    "pull": ["pull", "-y", "org/pocket"],
    "convert": ["convert", str(ROOT / "assets" / "pocket" / "target"), "converted"],
    "bench": ["bench", "-m", "pocket", "-n", "32", "-r", "1", "-p", "64"],
    "nothing": [],
}
PATIENCE = 60.0  # seconds until a run that does not end counts as hanging


class Run:
    """One process in a terminal; `ended` is its exit code, a signal's number below zero, None for one that hangs."""

    def __init__(self, command: list[str], home: Path, kernels: Path, endpoint: str) -> None:
        self.shown, self.ended = b"", None
        environ = {"HOME": str(home), "MLXMTP_HOME": str(home), "TMPDIR": str(kernels), "TERM": "xterm-256color"}
        environ |= {
            "PYTHONFAULTHANDLER": "1",
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "LANG": "C.UTF-8",
            "HF_ENDPOINT": endpoint,
        }
        program = START if command else NOTHING
        begun, begins = os.pipe()  # is closed when the program has taken this one's place: before, nobody hears Ctrl-C
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):  # ignored where `&` or nohup started this
                signal.signal(number, signal.SIG_DFL)
            os.chdir(home)
            os.execve(sys.executable, [sys.executable, "-c", program, *command], environ)
        os.close(begins)
        os.read(begun, 1)
        os.close(begun)

    def read(self, seconds: float) -> bool:
        """Read what is shown for so long; false once the terminal is closed."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self.terminal], [], [], left)[0]:
                try:
                    data = os.read(self.terminal, 65536)
                except OSError:
                    return False
                if not data:
                    return False
                self.shown += data
        return True

    @property
    def name(self) -> str:
        """How it ended."""
        if self.ended is None:
            return "hangs"
        return f"exit {self.ended}" if self.ended >= 0 else signal.Signals(-self.ended).name

    @property
    def over(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def strike(self, how: str) -> None:
        """Press Ctrl-C, or send another signal to the process alone."""
        try:
            if how == "INT":
                os.write(self.terminal, b"\x03")
            else:
                os.kill(self.pid, getattr(signal, f"SIG{how}"))
        except (OSError, ProcessLookupError):
            pass

    def wait(self, seconds: float = PATIENCE) -> None:
        end = time.monotonic() + seconds
        open_ = True
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.read(0.05) if open_ else None
                self.ended = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
                break
            open_ = open_ and self.read(0.05)
            if not open_:
                time.sleep(0.02)
        else:
            os.kill(self.pid, signal.SIGABRT)  # faulthandler shows where it hangs
            self.read(2.0) if open_ else None
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.terminal)


def kept(folder: Path) -> str:
    """Return the saved conversations of a run."""
    return "".join(path.read_text(encoding="utf-8") for path in (folder / "sessions").glob("*.jsonl"))


def plain(shown: bytes) -> str:
    """Return the text of what a terminal was sent, without the blank space around it."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[78]", "", shown.decode(errors="replace")).strip()


def ending(command: str, kernels: Path, endpoint: str) -> str:
    """Return the last line of an answer that nobody interrupts, "" for commands that do not end in an answer."""
    if command not in {"ask", "save"}:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(COMMANDS["ask"], Path(folder), kernels, endpoint)
        run.wait()
    return plain(run.shown).splitlines()[-1]


def one(number: int, options: argparse.Namespace, kernels: Path, endpoint: str, whole: str) -> tuple[str, str]:
    """Return how a run ended, and what it showed if that is wrong; `whole` is how a whole answer ends."""
    chance = random.Random(options.seed * 1_000_003 + number)
    folder = Path(tempfile.mkdtemp(prefix="interrupts-"))
    cold = folder / "kernels"
    cold.mkdir()
    command = COMMANDS[options.command]
    run = Run(command, folder, cold if number % 3 == 0 else kernels, endpoint)
    if options.command == "turn":  # the signal comes after a question has been sent
        while b"1m>" not in run.shown and run.read(0.1):  # the prompt, in bold
            pass
        os.write(run.terminal, QUESTION.encode() + b"\r")
    moments = sorted(chance.uniform(0, options.seconds) for _ in range(options.times))
    run.read(moments[0])
    over = run.over
    run.strike(options.how)
    for before, moment in pairwise(moments):
        run.read(moment - before)
        run.strike(options.how)
    end = time.monotonic() + PATIENCE
    while command == ["chat"] and not run.over and time.monotonic() < end:
        if run.read(0.3):
            with suppress(OSError):  # it has left, on macOS
                os.write(run.terminal, b"\x15\x04")  # clear the line, and leave
        else:
            time.sleep(0.02)
    run.wait()
    text = plain(run.shown)
    number_of = getattr(signal, f"SIG{options.how}")
    fine = {0} if over else {128 + number_of, -number_of}
    if whole and whole in text:
        fine.add(0)
    if command == ["chat"] and options.how == "INT":
        fine |= {0, 130}
    words = WORDS.search(text)
    early = words is not None and run.ended is not None and f"{ROOT}/mlxmtp" not in text
    lost = options.command == "turn" and QUESTION not in text + kept(folder)
    wrong = lost or (not early and (words is not None or run.ended not in fine))
    shutil.rmtree(folder, ignore_errors=True)
    name = "over before" if over else run.name
    at = ", ".join(f"{moment:.3f}" for moment in moments)
    name += " before the first line" if early else " with words" if words else ""
    return name, f"run {number} at {at} s: {name}\n{text}" if wrong else ""


def main() -> int:
    """Run them all and print the counts; returns 1 if any was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=1000, help="runs")
    parser.add_argument("-j", type=int, default=3, help="at once")
    parser.add_argument("--first", type=int, default=0, help="number of the first run")
    parser.add_argument("--seconds", type=float, default=1.5, help="the signal comes within so many seconds")
    parser.add_argument("--times", type=int, default=1, help="signals in a run")
    parser.add_argument("--how", default="INT", choices=["INT", "TERM", "HUP"])
    parser.add_argument("--command", default="ask", choices=COMMANDS)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    kernels = Path(tempfile.mkdtemp(prefix="interrupts-kernels-"))
    hub = Hub()
    hub.publish("org/pocket", ROOT / "assets" / "pocket" / "target")
    ends: Counter[str] = Counter()
    wrong = []
    whole = ending(options.command, kernels, hub.url)
    with ThreadPoolExecutor(options.j) as pool, closing(hub):
        for end, shown in pool.map(
            lambda number: one(number, options, kernels, hub.url, whole),
            range(options.first, options.first + options.n),
        ):
            ends[end] += 1
            if shown:
                wrong.append(shown)
    shutil.rmtree(kernels, ignore_errors=True)
    print(*wrong, sep="\n")
    print(
        f"{options.n} runs of {options.command}, {options.how} {options.times}x within {options.seconds} s:", dict(ends)
    )
    print(f"{len(wrong)} wrong")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
