"""Numbers of the server in the text form that Prometheus reads."""

from collections import Counter
from collections.abc import Iterator

from mlxmtp.engine.stats import Stats


class Metrics:
    """Counts since the start."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()  # by path and status
        self.failed = 0
        self._sums: Counter[str] = Counter()
        self._seconds = 0.0
        self._peak = 0

    def count(self, stats: Stats, *, read: bool = True) -> None:
        """Add an answer; `read`: to the end of its prompt."""
        self._sums["answers"] += 1
        self._peak = max(self._peak, stats.peak_memory)
        if not read:
            return
        self._sums.update(
            read=1,
            prompt=stats.prompt_tokens,
            cached=stats.reused_tokens,
            generated=stats.generation_tokens,
            drafted=stats.drafted,
            accepted=stats.accepted,
        )
        self._seconds += stats.time_to_first_token

    def text(self, *, waiting: int, running: int) -> str:
        """Return all numbers, each with its type and one line of help."""
        return "".join(self._lines(waiting, running))

    def _lines(self, waiting: int, running: int) -> Iterator[str]:
        yield _head("requests_total", "counter", "HTTP requests by path and status.")
        for (path, status), count in sorted(self.requests.items()):
            yield f'mlxmtp_requests_total{{path="{path}",status="{status}"}} {count}\n'
        sums = self._sums
        for name, value, help_text in (
            ("answers_total", sums["answers"], "Answers that ended."),
            ("answers_failed_total", self.failed, "Answers that failed."),
            ("prompt_tokens_total", sums["prompt"], "Tokens of prompts."),
            ("cached_prompt_tokens_total", sums["cached"], "Tokens of prompts that did not have to be read."),
            ("generated_tokens_total", sums["generated"], "Tokens of answers."),
            ("draft_tokens_total", sums["drafted"], "Draft tokens."),
            ("accepted_tokens_total", sums["accepted"], "Draft tokens that were accepted."),
        ):
            yield _head(name, "counter", help_text) + f"mlxmtp_{name} {value}\n"
        yield _head("time_to_first_token_seconds", "summary", "From the start of an answer to its first piece.")
        yield f"mlxmtp_time_to_first_token_seconds_sum {self._seconds:.6f}\n"
        yield f"mlxmtp_time_to_first_token_seconds_count {sums['read']}\n"
        for name, gauge, help_text in (
            ("requests_waiting", waiting, "Answers that wait for the model."),
            ("requests_running", running, "Answers that are being written."),
            ("peak_memory_bytes", self._peak, "Highest memory of MLX."),
        ):
            yield _head(name, "gauge", help_text) + f"mlxmtp_{name} {gauge}\n"


def _head(name: str, kind: str, help_text: str) -> str:
    return f"# HELP mlxmtp_{name} {help_text}\n# TYPE mlxmtp_{name} {kind}\n"
