"""Thousands of damaged pictures or sounds: each must be one, or one sentence.

    python -m scripts.hostile_media [-n 5000] [--sounds]

Each runs in a process of its own group, which is watched: a crash, a hang, more memory than allowed, or any fault but a
sentence is reported with its seed, and the file is written to the folder of `--keep`.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
from pathlib import Path

from tests.media.damage import damaged, samples, sounds
from tests.media.test_image import check
from tests.media.test_sound import check as check_sound

BATCH, SECONDS, MEMORY = 250, 60, 6 * 2**30


def file_of(name: str, data: bytes, seed: int) -> bytes:
    """Return the damaged file of that number."""
    return damaged(data, random.Random(f"{name} {seed}"))


def work(first: int, count: int, *, heard: bool) -> None:
    """Read the files of a batch; the name and seed of each is printed before."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    kinds, checked = (sounds(), check_sound) if heard else (samples(), check)
    names = list(kinds)
    for seed in range(first, first + count):
        name = names[seed % len(names)]
        print(seed, name, sep="\t", flush=True)
        began = sum(os.times()[:4])  # of this process and those that it waited for: the machine may have other work
        said = checked(file_of(name, kinds[name], seed))
        if (seconds := sum(os.times()[:4]) - began) > SECONDS / 6:
            raise TimeoutError(f"{seconds:.1f} s")
        print("said" if said else "seen", flush=True)


def main() -> int:
    """Run batches; return 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--sounds", action="store_true")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        work(options.first, options.work, heard=options.sounds)
        return 0
    kinds = sounds() if options.sounds else samples()
    seen = said = failed = noise = 0
    first, end = options.first, options.first + options.n
    while first < end:
        count = min(BATCH, end - first)
        command = [
            sys.executable,
            "-W",
            "error",
            "-m",
            "scripts.hostile_media",
            "--first",
            str(first),
            "--work",
            str(count),
            *(["--sounds"] if options.sounds else []),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS * 10, check=False)
            out, error, code = done.stdout, done.stderr, done.returncode
        except subprocess.TimeoutExpired as late:
            out, error, code = (late.stdout or b"").decode(), "it hangs", 1
        lines = out.splitlines()
        seen, said = seen + lines.count("seen"), said + lines.count("said")
        first, noise = first + count, noise + len(error.splitlines() if not code else ())
        if code:
            failed += 1
            seed, name = [line for line in lines if "\t" in line][-1].split("\t")
            print(f"seed {seed}, {name}, exit {code}: {error.strip().splitlines()[-1:]}", flush=True)
            if options.keep is not None:
                (options.keep / f"{seed}").write_bytes(file_of(name, kinds[name], int(seed)))
            first = int(seed) + 1
    print(f"{seen} read, {said} sentences, {failed} failures, {noise} lines of libraries on stderr")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
