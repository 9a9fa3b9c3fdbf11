"""Conclusions in words: is the drafter worth it here, on which text, what limits it, and is the text the same."""

from __future__ import annotations

from collections.abc import Sequence

from mlxmtp.bench.cost import limit
from mlxmtp.bench.samples import draft_label
from mlxmtp.bench.summary import CaseSummary, Row

_NEAR = 0.02  # speeds closer than this are the same


def verdict(case: CaseSummary) -> list[str]:
    """Return sentences about one case, the most important first."""
    drafted = [row for row in case.rows if row.num_draft_tokens != 0]
    if not drafted:
        return ["Only plain decoding was measured, so there is nothing to say about drafting."]
    best = max(drafted, key=_tps)
    parts = [_worth(case, best, len(drafted)), _by_kind(case, best), _automatic(case), _cost(case), _same_text(drafted)]
    return [part for part in parts if part]


def _tps(row: Row) -> float:
    return row.speed.generation_tps.median


def _worth(case: CaseSummary, best: Row, lengths: int) -> str:
    plain, gain = case.row(0), best.speed.times_plain
    if plain is None or gain is None:
        return ""
    speeds = f"{_tps(best):.1f} tok/s against {_tps(plain):.1f} plain"
    times = f"{gain.text(2)} times" + (" (one repetition: no spread is known)" if gain.count == 1 else "")
    name = "the automatic length" if best.num_draft_tokens == "auto" else f"drafting {best.num_draft_tokens}"
    name += "" if lengths == 1 else ", the best of the lengths measured,"
    if gain.high < 1 and (gain.count > 1 or gain.median < 1 - _NEAR):
        even = "even " if lengths > 1 else ""
        return f"The drafter loses here: {even}{name} gives {speeds}, {times}. Of the lengths measured 0 is best."
    if gain.low <= 1 or gain.median < 1 + _NEAR:
        return f"The drafter makes no difference here: {name} gives {speeds}, {times}."
    return f"The drafter is worth it here: {name} gives {speeds}, {times}."


def _by_kind(case: CaseSummary, best: Row) -> str:
    if len(case.kinds) < 2:
        return ""
    speeds = {kind: best.kinds[kind].times_plain for kind in case.kinds if kind in best.kinds}
    gains = {kind: 1.0 if gain is None else gain.median for kind, gain in speeds.items()}
    told = ", ".join(f"{kind} {gain:.2f}" for kind, gain in sorted(gains.items(), key=lambda item: -item[1]))
    losers = [kind for kind, gain in gains.items() if gain < 1 - _NEAR]
    loss = f" It loses on {' and '.join(losers)}." if losers else ""
    return f"By kind of text, in times plain with {draft_label(best.num_draft_tokens)}: {told}.{loss}"


def _automatic(case: CaseSummary) -> str:
    auto = case.row("auto")
    if auto is None or len(case.fixed) < 2:
        return ""
    length, best = max(case.fixed.items(), key=lambda item: _tps(item[1]))
    share = _tps(auto) / _tps(best)
    return f"The automatic length reaches {100 * share:.0f} % of the best fixed one ({draft_label(length)})."


def _cost(case: CaseSummary) -> str:
    cost = case.cost
    if cost is None or not case.accept:
        return ""
    base, step = 1000 * cost.base, 1000 * cost.step
    told = f"A round costs {base:.2f} ms and {step:.2f} ms more for each draft token"
    if cost.drafter is not None and cost.verify is not None:
        told += f" ({1000 * cost.drafter:.2f} drafter, {1000 * cost.verify:.2f} checking)"
    told += f", {100 * step / base:.0f} % of a plain one; with the acceptance seen here "
    best = cost.best(case.accept)
    if best == 0:
        told += "no length pays."
    else:
        speed = cost.speed(best, case.accept)
        told += f"{draft_label(best)} should be best ({speed:.1f} tok/s by the cost model)."
    found = limit(cost, case.accept)
    if found is None:
        nothing = "Nothing limits it: halving either cost, or the share of rejected drafts, would bring less than 1 %."
        return f"{told} {nothing}"
    name, gain = found
    halved = "the share of rejected drafts" if name == "acceptance" else "it"
    return f"{told} What limits it most is {name}: halving {halved} would bring {100 * gain:.0f} %."


def _same_text(drafted: Sequence[Row]) -> str:
    compared = sum(row.texts_compared for row in drafted)
    divergences = [divergence for row in drafted for divergence in row.divergences]
    if not divergences:
        return f"Every text is the same as plain ({compared} of {compared})."
    ties = sum(divergence.near_tie for divergence in divergences)
    first = min(divergences, key=lambda divergence: divergence.at)
    told = f"{len(divergences)} of {compared} texts differ from plain, the first at token {first.at}"
    told += f" ({first.other_text!r} for {first.plain_text!r}, margin {first.margin:.3g})"
    if ties == len(divergences):
        return f"{told}; all at near-ties, which rounding explains."
    return f"{told}; {len(divergences) - ties} of them with a clear margin, which rounding does not explain."
