"""Numbers as one line for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlxmtp.hub.fit import shown

if TYPE_CHECKING:
    from mlxmtp.engine.stats import Stats


def stats_line(stats: Stats, context: int) -> str:
    """`318 tok · 62.4 tok/s · 3.1 tok/pass, 74 % accepted · prompt 1204 tok (980 reused) 0.2 s · context …`."""
    parts = [f"{stats.generation_tokens} tok", f"{stats.generation_tps:.1f} tok/s"]
    if stats.drafted:
        parts.append(f"{stats.tokens_per_pass:.1f} tok/pass, {100 * stats.accepted / stats.drafted:.0f} % accepted")
    reused = f" ({stats.reused_tokens} reused)" if stats.reused_tokens else ""
    parts.append(f"prompt {stats.prompt_tokens} tok{reused} {stats.prompt_seconds:.1f} s")
    parts.append(f"context {_short(stats.prompt_tokens + stats.generation_tokens)}/{_short(context)}")
    parts.append(shown(stats.peak_memory))
    parts.append(f"seed {stats.seed}")
    if stats.draft_reason:
        parts.append(stats.draft_reason)
    return " · ".join(parts)


def _short(count: int) -> str:
    """Token counts as in `2.4k/128k`: thousands of 1024, as contexts are named."""
    if count < 1000:
        return str(count)
    return f"{count / 1024:.0f}k" if count >= 10 * 1024 or count % 1024 == 0 else f"{count / 1024:.1f}k"
