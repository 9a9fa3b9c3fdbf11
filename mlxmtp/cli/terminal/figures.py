"""The numbers of an answer, as one line and as names with values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlxmtp.units import format_bytes

if TYPE_CHECKING:
    from mlxmtp.engine.stats import Stats


def stats_line(stats: Stats, context: int) -> str:
    """`318 tok · 62.4 tok/s · 3.1 tok/pass, 74 % accepted · prompt 1204 tok (980 reused) 0.2 s · context …`."""
    parts = [*turn_parts(stats, context), f"seed {stats.seed}"]
    if stats.draft_reason:
        parts.append(stats.draft_reason)
    return " · ".join(parts)


def turn_parts(stats: Stats, context: int) -> list[str]:
    """What everybody wants to know of an answer."""
    parts = [f"{stats.generation_tokens} tok", f"{stats.generation_tps:.1f} tok/s"]
    if stats.drafted:
        parts.append(f"{stats.tokens_per_pass:.1f} tok/pass, {100 * stats.accepted / stats.drafted:.0f} % accepted")
    reused = f" ({stats.reused_tokens} reused)" if stats.reused_tokens else ""
    parts.append(f"prompt {stats.prompt_tokens} tok{reused} {stats.prompt_seconds:.1f} s")
    parts.append(f"context {short(stats.prompt_tokens + stats.generation_tokens)}/{short(context)}")
    parts.append(format_bytes(stats.peak_memory))
    return parts


def sheet_of(stats: Stats, context: int) -> list[tuple[str, str]]:
    """Everything about an answer, as names and values."""
    rows = [
        ("prompt", f"{stats.prompt_tokens:,} tokens, {stats.reused_tokens:,} of them reused"),
        ("reading", f"{stats.prompt_seconds:.2f} s, {stats.prompt_tps:.1f} tok/s"),
        ("first word", f"after {stats.time_to_first_token:.2f} s"),
        ("answer", f"{stats.generation_tokens:,} tokens in {stats.generation_seconds:.2f} s"),
        ("speed", f"{stats.generation_tps:.1f} tok/s"),
        ("passes", f"{stats.rounds}, {stats.tokens_per_pass:.2f} tok/pass"),
    ]
    if stats.drafted:
        share = 100 * stats.accepted / stats.drafted
        by_position = " ".join(f"{100 * part:.0f}" for part in stats.acceptance_by_position)
        rows.append(
            ("drafts", f"{stats.accepted} of {stats.drafted} accepted, {share:.0f} % ({by_position} by position)")
        )
    rows += [
        ("drafting", stats.draft_reason),
        ("context", f"{stats.prompt_tokens + stats.generation_tokens:,} of {context:,} tokens"),
        ("memory", f"{format_bytes(stats.peak_memory)} at the peak"),
        ("seed", str(stats.seed)),
    ]
    return [row for row in rows if row[1]]


def short(count: int) -> str:
    """Token counts as in `2.4k/128k`: thousands of 1024, as contexts are named."""
    if count < 1000:
        return str(count)
    return f"{count / 1024:.0f}k" if count >= 10 * 1024 or count % 1024 == 0 else f"{count / 1024:.1f}k"
