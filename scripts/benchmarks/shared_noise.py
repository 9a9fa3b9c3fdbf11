"""What it is worth that the drafter shares the target's noise: tokens per pass with and without.

    .venv/bin/python -m scripts.benchmarks.shared_noise [--tokens 80]

Counts only, no clock: the same prompts and seeds on the built-in pair, drafts chosen by score plus the target's noise,
and by score alone as other engines do. The texts are identical in all columns, which is checked.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import mlxmtp.models  # noqa: F401  (OpenBLAS before mlx)
from mlxmtp.decode.decoder import Decoder
from mlxmtp.decode.sampling import Sampling
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.models.drafter import Scores
from mlxmtp.models.load import load_drafter, load_target

POCKET = Path(__file__).parents[2] / "assets" / "pocket"
QUESTIONS = (
    "What is multi-token prediction?", "How do I pipe a file into mlxmtp?", "List the flags of mlxmtp ask",
    "Show me a Python example that streams an answer", "Which model fits a 16 GB Mac?", "What does --seed do?",
    "How do I resume a broken download?", "What is a drafter?",
)  # fmt: skip
SETTINGS = {
    "greedy": Sampling(),
    "temperature 1, top-k 64, top-p 0.95": Sampling(temp=1.0, top_k=64, top_p=0.95),
    "temperature 1": Sampling(temp=1.0),
    "temperature 2": Sampling(temp=2.0),
    "temperature 3": Sampling(temp=3.0),
}


class Deaf:
    """A drafter whose scores are so far apart that no noise changes its choice: drafts by argmax."""

    def __init__(self, drafter: Any) -> None:
        self._drafter, self.context = drafter, drafter.context

    def step(self, *arguments: Any) -> tuple[Scores, Any]:
        scores, hidden = self._drafter.step(*arguments)
        return Scores(scores.values * 1e6, scores.ids), hidden


def passes(decoder: Decoder, prompts: list[list[int]], sampling: Sampling, k: int, tokens: int) -> tuple[float, list]:
    """Tokens per pass over all prompts, and the texts."""
    kept = rounds = 0
    texts = []
    for seed, prompt in enumerate(prompts):
        seeded = Sampling(sampling.temp, sampling.top_p, sampling.top_k, sampling.min_p, seed)
        stop = decoder.target.config.stop_ids
        played = list(decoder.rounds(prompt, max_tokens=tokens, num_draft_tokens=k, sampling=seeded, stop=stop))
        kept += sum(len(round_.tokens) for round_ in played[1:])
        rounds += len(played) - 1
        texts.append([token for round_ in played for token in round_.tokens])
    return kept / rounds, texts


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=80, help="per prompt, at most (default: %(default)s)")
    tokens = parser.parse_args().tokens
    target = load_target(POCKET / "target")
    drafter = load_drafter(POCKET / "drafter", target)
    tokenizer = Tokenizer.load(POCKET / "target")
    prompts = [tokenizer.prompt_ids([{"role": "user", "content": question}]) for question in QUESTIONS]
    hearing, deaf = (Decoder(target, one, compiled="never") for one in (drafter, Deaf(drafter)))
    print("| | drafts | K = 1 | K = 2 | K = 4 |\n|---|---|---:|---:|---:|")
    for name, sampling in SETTINGS.items():
        seen = []
        for how, decoder in (("with the target's noise", hearing), ("by argmax", deaf)):
            row = [passes(decoder, prompts, sampling, k, tokens) for k in (1, 2, 4)]
            seen += [texts for _, texts in row]
            print(f"| {name} | {how} | " + " | ".join(f"{value:.2f}" for value, _ in row) + " |", flush=True)
        assert all(texts == seen[0] for texts in seen), "drafting changed a text"


if __name__ == "__main__":
    main()
