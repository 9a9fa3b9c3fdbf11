"""The figures in words: is the drafter worth it here, on which text, what limits it, and is the text the same."""

from __future__ import annotations

from collections.abc import Sequence

from mlxmtp.bench.cost import limit
from mlxmtp.bench.samples import shown_arm
from mlxmtp.bench.summary import ArmFigures, CaseFigures, Speed

_NEAR = 0.02  # speeds closer than this are the same


def verdict(case: CaseFigures) -> list[str]:
    """Sentences about one case, the most important first."""
    drafted = [row for row in case.arms if row.arm != 0]
    if not drafted:
        return ["Only plain decoding was measured, so there is nothing to say about drafting."]
    parts = [_best(case, drafted), _kinds(case, drafted), _auto(case), _limit(case), _same(drafted)]
    return [part for part in parts if part]


def _best(case: CaseFigures, drafted: Sequence[ArmFigures]) -> str:
    plain = case.arm(0)
    best = max(drafted, key=lambda row: row.speed.tps.median)
    gain = best.speed.gain
    if plain is None or gain is None:
        return ""
    speeds = f"{best.speed.tps.median:.1f} tok/s against {plain.speed.tps.median:.1f} plain"
    times = f"{gain.text(2)} times" + (" (one repetition: no spread is known)" if gain.count == 1 else "")
    name = _named(best) + ("" if len(drafted) == 1 else ", the best of the lengths measured,")
    if gain.high < 1 and (gain.count > 1 or gain.median < 1 - _NEAR):
        even = "even " if len(drafted) > 1 else ""
        return f"The drafter loses here: {even}{name} gives {speeds}, {times}. Of the lengths measured 0 is best."
    if gain.low <= 1 or gain.median < 1 + _NEAR:
        return f"The drafter makes no difference here: {name} gives {speeds}, {times}."
    return f"The drafter is worth it here: {name} gives {speeds}, {times}."


def _named(row: ArmFigures) -> str:
    return "the automatic length" if row.arm == "auto" else f"drafting {row.arm}"


def _kinds(case: CaseFigures, drafted: Sequence[ArmFigures]) -> str:
    if len(case.kinds) < 2:
        return ""
    best = max(drafted, key=lambda row: row.speed.tps.median)
    gains = {kind: _gain(best.kinds[kind]) for kind in case.kinds if kind in best.kinds}
    told = ", ".join(f"{kind} {gain:.2f}" for kind, gain in sorted(gains.items(), key=lambda item: -item[1]))
    losers = [kind for kind, gain in gains.items() if gain < 1 - _NEAR]
    loss = f" It loses on {' and '.join(losers)}." if losers else ""
    return f"By kind of text, in times plain with {shown_arm(best.arm)}: {told}.{loss}"


def _gain(speed: Speed) -> float:
    return speed.gain.median if speed.gain is not None else 1.0


def _auto(case: CaseFigures) -> str:
    auto = case.arm("auto")
    if auto is None or len(case.fixed) < 2:
        return ""
    best = max(case.fixed, key=lambda row: row.speed.tps.median)
    share = auto.speed.tps.median / best.speed.tps.median
    return f"The automatic length reaches {100 * share:.0f} % of the best fixed one ({shown_arm(best.arm)})."


def _limit(case: CaseFigures) -> str:
    cost = case.cost
    if cost is None or not case.accept:
        return ""
    base, step = 1000 * cost.base, 1000 * cost.step
    told = f"A round costs {base:.2f} ms and {step:.2f} ms more for each draft token"
    if cost.drafter is not None and cost.checking is not None:
        told += f" ({1000 * cost.drafter:.2f} drafter, {1000 * cost.checking:.2f} checking)"
    told += f", {100 * step / base:.0f} % of a plain one"
    best = cost.best(case.accept)
    if best == 0:
        return f"{told}; with the acceptance seen here no length pays. {_held(case)}"
    told += f"; with the acceptance seen here {shown_arm(best)} should be best"
    return f"{told} ({cost.speed(best, case.accept):.1f} tok/s by the cost model). {_held(case)}"


def _held(case: CaseFigures) -> str:
    assert case.cost is not None, "only asked where there is a cost model"
    found = limit(case.cost, case.accept)
    if found is None:
        return "Nothing limits it: halving either cost, or the share of rejected drafts, would bring less than 1 %."
    name, gain = found
    what = "the share of rejected drafts" if name == "acceptance" else "it"
    return f"What limits it most is {name}: halving {what} would bring {100 * gain:.0f} %."


def _same(drafted: Sequence[ArmFigures]) -> str:
    compared = sum(row.compared for row in drafted)
    partings = [parting for row in drafted for parting in row.partings]
    if not partings:
        return f"Every text is the same as plain ({compared} of {compared})."
    ties = sum(parting.near_tie for parting in partings)
    first = min(partings, key=lambda parting: parting.at)
    told = f"{len(partings)} of {compared} texts differ from plain, the first at token {first.at}"
    told += f" ({first.other_text!r} for {first.plain_text!r}, margin {first.margin:.3g})"
    if ties == len(partings):
        return f"{told}; all at near-ties, which rounding explains."
    return f"{told}; {len(partings) - ties} of them with a clear margin, which rounding does not explain."
