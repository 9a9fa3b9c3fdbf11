"""Reports as JSON: what is written is read again as the same values, and damage is named."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from mlxmtp.bench.compare import compare_reports
from mlxmtp.bench.report import Report, read_report
from mlxmtp.bench.samples import Case, Divergence, DrafterTiming
from mlxmtp.errors import UsageError
from tests.bench.fake_harness import report, sample

DIVERGENCE = Divergence(5, 1, 2, "a", "b", 1e-6, 1e-6)


def measured() -> Report:
    samples = [sample(0), sample(3, accepted=2, length=512), replace(sample("auto"), divergence=DIVERGENCE)]
    made = report(samples, power_source="AC", low_power_mode=False, load=0.25)
    made.add(DrafterTiming(Case("m", None), 3, (0.02, 0.03), (0.01,)))
    return made


def written(made: Report, **changes: Any) -> str:
    return json.dumps({**made.to_json(), **changes})


def test_a_report_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(written(measured()))
    assert read_report(path) == measured()


def test_a_report_from_before_a_setting_that_may_be_left_open_is_read(tmp_path):
    path = tmp_path / "a.json"
    models = measured().to_json()["models"]
    asked = measured().to_json()["settings"]
    del models[0]["kv_bits"], asked["image_tokens"]
    path.write_text(written(measured(), models=models, settings=asked))
    found = read_report(path)
    assert found.models[0].kv_bits is None
    assert compare_reports(measured(), found, ("a", "b")).warnings == ()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"samples": [{}]}, "KeyError: 'model'"),
        ({"samples": []}, "holds no samples"),
        ({"created": 1}, "TypeError: 1 is no str"),
        ({"complete": None}, "TypeError: None is no bool"),
        ({"after": {"load": "high"}}, "TypeError: 'high' is no"),
        ({"models": None}, "TypeError"),
    ],
)
def test_damage_is_named(tmp_path, change, says):
    path = tmp_path / "a.json"
    path.write_text(written(measured(), **change))
    with pytest.raises(UsageError, match=says):
        read_report(path)


@pytest.mark.parametrize(
    ("key", "value"), [("num_draft_tokens", "often"), ("rounds", [[1, 2, 3]]), ("tokens", ["x"]), ("peak_memory", True)]
)
def test_a_damaged_sample_is_refused(tmp_path, key, value):
    path = tmp_path / "a.json"
    samples = measured().to_json()["samples"]
    samples[0][key] = value
    path.write_text(written(measured(), samples=samples))
    with pytest.raises(UsageError, match="is a damaged report"):
        read_report(path)
