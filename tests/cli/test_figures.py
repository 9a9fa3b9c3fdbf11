from __future__ import annotations

from mlxmtp.cli.terminal.presenters import stats_line
from mlxmtp.engine.stats import Stats

STATS = Stats(
    prompt_tokens=1204, reused_tokens=980, prompt_seconds=0.21, generation_tokens=318, generation_tps=62.44,
    drafted=400, accepted=296, tokens_per_pass=3.11, peak_memory=9_800_000_000, seed=7, draft_reason="",
)  # fmt: skip


def test_everything_on_one_line() -> None:
    assert stats_line(STATS, 131072) == (
        "318 tok · 62.4 tok/s · 3.1 tok/pass, 74 % accepted · prompt 1204 tok (980 reused) 0.2 s · "
        "context 1.5k/128k · 9.8 GB · seed 7"
    )


def test_what_did_not_happen_is_left_out() -> None:
    line = stats_line(
        Stats(prompt_tokens=5, generation_tokens=2, peak_memory=96_000_000, draft_reason="no drafter"), 512
    )
    assert line == "2 tok · 0.0 tok/s · prompt 5 tok 0.0 s · context 7/512 · 96 MB · seed 0 · no drafter"
