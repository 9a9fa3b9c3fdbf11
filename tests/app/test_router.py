"""Rules of the router: read from a config, decided from facts."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxmtp.app.endpoints import endpoint_named, endpoint_of, endpoints_of
from mlxmtp.app.router import BIG, SMALL, Facts, Rules, reason, route, rules_of
from mlxmtp.errors import ConfigError
from mlxmtp.settings import Loaded, Settings, find_places, load_settings

CONFIG = """
[endpoint.team]
url = "https://gpu.example.org/v1"
key_env = "TEAM_KEY"
sends = ["attachments"]

[endpoint.spare]
url = "10.0.0.7:8000"

[router]
small = "e2b"
big = ["26b", "spare"]
remote = "fallback"

[[skill]]
name = "long"
prompt_tokens = 8000
model = "big"

[[skill]]
name = "code"
pattern = '(?i)\\btraceback\\b'
model = "team"

[[skill]]
name = "thought"
think = true
images = false
model = "big"
"""


def loaded(folder: Path, config: str, **flags: object) -> Loaded:
    (folder / "config.toml").write_text(config, encoding="utf-8")
    return load_settings(flags, {"HOME": "/h", "MLXMTP_HOME": str(folder)})


def rules_in(config: str) -> Rules:
    said = tomllib.loads(config)
    nested = {"endpoints": said.get("endpoint", {}), "router": said["router"], "skills": tuple(said["skill"])}
    found = Loaded(Settings(), find_places({"HOME": "/h"}), **nested)
    return rules_of(found, endpoints_of(found))


RULES = rules_in(CONFIG)


@pytest.fixture
def rules() -> Rules:
    return RULES


def test_a_config_with_them_has_no_unknown_keys(tmp_path: Path) -> None:
    assert loaded(tmp_path, CONFIG).warnings == ()


SHORT = Facts("What is a drafter?", 12)


@pytest.mark.parametrize(
    ("facts", "order", "why"),
    [
        (SHORT, (SMALL, "26b", "spare"), "no skill"),
        (Facts("Hi", 8000), ("26b", "spare", SMALL), "long"),
        (Facts("A Traceback!", 9000), ("26b", "spare", SMALL), "long"),  # the first that holds
        (Facts("A Traceback!", 9), ("team", "26b", "spare", SMALL), "code"),
        (Facts("Tracebacks", 9, think=True), ("26b", "spare", SMALL), "thought"),
        (Facts("Hi", 9, think=True, images=True), (SMALL, "26b", "spare"), "no skill"),
    ],
)
def test_the_first_skill_that_holds_decides(rules: Rules, facts: Facts, order: tuple[str, ...], why: str) -> None:
    found = route(rules, facts, {})
    assert (found.order, found.why, found.passed) == (order, why, ())


def test_what_stands_in_the_way_is_said(rules: Rules) -> None:
    found = route(rules, Facts("Hi", 9000), {"26b": "does not fit the memory"})
    assert found.order == ("spare", SMALL)
    assert reason("spare", found.why, found.passed) == "spare: long, but 26b does not fit the memory"
    assert route(rules, SHORT, dict.fromkeys(rules.models, "is gone")).order == ()


def test_a_conversation_stays_with_its_model(rules: Rules) -> None:
    assert route(rules, SHORT, {}, "26b").order[0] == "26b"
    assert route(rules, SHORT, {}, "26b").why == "as before"
    assert route(rules, SHORT, {}, SMALL).why == "no skill"
    assert route(rules, Facts("Traceback", 9), {}, "26b").order[0] == "team"  # unless a skill says otherwise
    assert route(rules, SHORT, {"team": "is left alone"}, "team").order[0] == "26b"


def test_what_leaves_the_machine(rules: Rules) -> None:
    assert rules.stays_here("team", SHORT) == ""
    assert rules.stays_here("team", Facts("Hi", 9, attachments=True)) == ""
    assert "attachments" in rules.stays_here("spare", Facts("Hi", 9, attachments=True))
    assert "attachments" in rules.stays_here("spare", Facts("Hi", 9, images=True))
    assert "tool results" in rules.stays_here("team", Facts("Hi", 9, tools=True))
    assert "tool results" in rules.stays_here("team", Facts("Hi", 9, results=True))
    assert rules.stays_here("26b", Facts("Hi", 9, attachments=True, results=True)) == ""


def test_without_permission_nothing_leaves() -> None:
    rules = rules_in(CONFIG.replace('remote = "fallback"\n', ""))
    assert rules.remote == "never"
    assert all(rules.stays_here(name, SHORT) for name in ("team", "spare"))


NAMES = [SMALL, "26b", "team", "spare"]
FACTS = st.builds(
    Facts, st.sampled_from(["Hi", "a traceback", ""]), st.sampled_from([0, 7999, 8000, 10**6]), *[st.booleans()] * 6
)


@given(FACTS, st.sets(st.sampled_from(NAMES)), st.none() | st.sampled_from(NAMES))
def test_any_question(facts: Facts, gone: set[str], current: str | None) -> None:
    obstacles = {name: "is gone" if name in gone else RULES.stays_here(name, facts) for name in RULES.models}
    decided = route(RULES, facts, obstacles, current)
    assert decided == route(RULES, facts, dict(obstacles), current)
    assert all(not obstacles[name] for name in decided.order)
    assert len({*decided.order}) == len(decided.order)
    first = next((one for one in RULES.skills if one.holds(facts)), None)
    assert decided.why in ("no skill", "as before") if first is None else decided.why == first.name
    assert bool(decided.order) == any(not obstacles[one] for one in (*RULES.big, SMALL, *_wanted(first, current)))
    if first is not None and first.model == BIG and not obstacles["26b"]:
        assert decided.order[0] == "26b"


def _wanted(skill: object, current: str | None) -> list[str]:
    model = getattr(skill, "model", current)
    return [] if model in (None, BIG) else [str(model)]


BAD = [
    ("[router]\nsmall = 'e2b'", "needs big"),
    ("[router]\nbig = '26b'\nremote = 'always'", "never, ask or fallback"),
    ("[router]\nbig = '26b'\nbigger = '31b'", "has no key 'bigger': did you mean 'big'"),
    ("[router]\nbig = '26b'\n[[skill]]\nmodel = 'big'", "needs a name and a model"),
    ("[router]\nbig = '26b'\n[[skill]]\nname = 'x'\nmodel = 'team'", "leads to 'team': it may lead to small, big"),
    ("[router]\nbig = '26b'\n[[skill]]\nname = 'x'\nmodel = 'big'\npattern = '('", "no expression"),
    ("[router]\nbig = '26b'\n[[skill]]\nname = 'x'\nmodel = 'big'\nthink = 'yes'", "true or false"),
    ("[router]\nbig = '26b'\n[endpoint.team]\nmodel = 'x'", "needs the server's address"),
    ("[router]\nbig = '26b'\n[endpoint.team]\nurl = 'x'\nkey = 'sk-secret'", "holds a key"),
    ("[router]\nbig = '26b'\n[endpoint.team]\nurl = 'x'\nsends = ['all']", "attachments"),
    ("[router]\nbig = '26b'\n[endpoint.auto]\nurl = 'x'", "needs another one"),
    ("[router]\nbig = '26b'\n[endpoint]\nteam = 'x'", "must be a table"),
    ("router = 'e2b'", "stand in tables"),
    ("skill = 3", "stand in tables"),
]


@pytest.mark.parametrize(("config", "said"), BAD)
def test_a_mistake_is_one_sentence(tmp_path: Path, config: str, said: str) -> None:
    def read() -> None:
        found = loaded(tmp_path, config)
        rules_of(found, endpoints_of(found))

    with pytest.raises(ConfigError) as error:
        read()
    assert said in str(error.value)
    assert "secret" not in str(error.value)


def test_names_of_endpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def endpoint(**flags: object) -> tuple[str | None, str | None, str]:
        found = endpoint_of(loaded(tmp_path, CONFIG, **flags))
        return ("", "", "") if found is None else (found.url, found.model, found.title)

    team = "https://gpu.example.org/v1"
    assert endpoint(model="team") == (team, None, "team")
    assert endpoint(url="team", model="x") == (team, "x", "team")
    assert endpoint(url="gpu:1", model="x") == ("gpu:1", "x", "gpu:1")
    assert endpoint(model="http://gpu:1") == ("http://gpu:1", None, "http://gpu:1")
    assert endpoint(model="e2b") == endpoint() == endpoint(model="auto") == ("", "", "")
    monkeypatch.delenv("TEAM_KEY", raising=False)
    found = endpoint_named(loaded(tmp_path, CONFIG), "team")
    assert found is not None
    with pytest.raises(ConfigError, match="TEAM_KEY, which is not set"):
        found.remote(9)
    monkeypatch.setenv("TEAM_KEY", "sk-1")
    assert "sk-1" not in repr(found) + found.remote(9).url
