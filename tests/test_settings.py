from __future__ import annotations

import re
import runpy
from dataclasses import fields
from pathlib import Path
from types import NoneType, SimpleNamespace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from mlxmtp.app.open import answer_params
from mlxmtp.decode.sampling import Sampling
from mlxmtp.engine.params import Params
from mlxmtp.errors import ConfigError, UsageError
from mlxmtp.limits import MAX_DRAFT, PENALTIES, SAMPLING, SLACK
from mlxmtp.settings import TABLE, Loaded, Settings, find_places, load_settings

ROOT = Path(__file__).parents[1]


def load(tmp_path: Path, config: str = "", flags: dict[str, object] | None = None, **environ: str) -> Loaded:
    (tmp_path / "config.toml").write_text(config, encoding="utf-8")
    return load_settings(flags or {}, {"HOME": "/nowhere", "MLXMTP_HOME": str(tmp_path), **environ})


def test_flags_over_environment_over_config_file(tmp_path: Path) -> None:
    config = 'model = "from config"\ntemp = 0.5\n'
    assert load(tmp_path, config).settings.model == "from config"
    assert load(tmp_path, config, MLXMTP_MODEL="from environment").settings.model == "from environment"
    flags: dict[str, object] = {"model": "from flag"}
    assert load(tmp_path, config, flags, MLXMTP_MODEL="from environment").settings.model == "from flag"
    assert load(tmp_path, config, flags).settings.temp == 0.5


def test_what_nobody_set_is_none(tmp_path: Path) -> None:
    settings = load_settings({}, {"HOME": str(tmp_path)}).settings
    assert settings.temp is None
    assert settings.draft is None


def test_every_kind_of_value(tmp_path: Path) -> None:
    config = """
        num-draft-tokens = 4
        temp = 1
        draft = false
        system = "Be brief."
        [aliases]
        mine = "org/repo"
        [prompts]
        haiku = "Answer in a haiku."
    """
    loaded = load(tmp_path, config)
    settings = loaded.settings
    assert (settings.num_draft_tokens, settings.temp, settings.draft, settings.system) == (4, 1.0, False, "Be brief.")
    assert loaded.aliases == {"mine": "org/repo"}
    assert loaded.warnings == ()


def test_an_unknown_key_is_a_warning_with_a_suggestion(tmp_path: Path) -> None:
    loaded = load(tmp_path, "max_token = 5\nqwertz = 1\n")
    assert loaded.settings.max_tokens is None
    assert "'max_token'" in loaded.warnings[0]
    assert loaded.warnings[0].endswith("did you mean 'max_tokens'?")
    assert loaded.warnings[1].endswith("config.toml has no effect.")


BAD: list[tuple[str, Any, str]] = [
    ("temp", -1, "a number from 0 up"),
    ("cache_gb", -1, "a number from 0 up"),
    ("cache", 1, "true or false"),
    ("temp", float("nan"), "a number from 0 up"),
    ("temp", True, "a number from 0 up"),
    ("top_p", 0, "above 0 and up to 1"),
    ("top_p", 1.5, "above 0 and up to 1"),
    ("top_k", -1, "whole number from 0"),
    ("min_p", 2, "from 0 to 1"),
    ("seed", -1, "whole number from 0"),
    ("max_tokens", 0, "whole number from 1"),
    ("num_draft_tokens", "9", "from 0 to 8, or auto"),
    ("num_draft_tokens", "many", "from 0 to 8, or auto"),
    ("draft_bits", 3, "4, 8 or 16"),
    ("kv_bits", 16, "4 or 8"),
    ("kv_bits", 4.5, "4 or 8"),
    ("draft", "yes", "true or false"),
    ("model", " ", "the name of a model"),
]


@pytest.mark.parametrize(("key", "value", "wanted"), BAD)
def test_a_bad_value_is_one_sentence_that_says_where_and_what(
    tmp_path: Path, key: str, value: Any, wanted: str
) -> None:
    with pytest.raises(UsageError, match=f"--{key.replace('_', '-')} must be .*{wanted}"):
        load(tmp_path, flags={key: value})
    written = f'"{value}"' if isinstance(value, str) else str(value).lower()
    with pytest.raises(ConfigError, match=f"{key} in .*config.toml must be .*{wanted}"):
        load(tmp_path, f"{key} = {written}\n")


@pytest.mark.parametrize("config", ["temp = ", "\x00", "[aliases]\nmine = 3\n", 'aliases = "x"'])
def test_a_damaged_config_file_is_one_sentence(tmp_path: Path, config: str) -> None:
    with pytest.raises(ConfigError, match=r"config\.toml"):
        load(tmp_path, config)


@pytest.mark.parametrize(("given", "length"), [("0", 0), ("8", 8), ("auto", "auto"), (3, 3)])
def test_draft_lengths(tmp_path: Path, given: object, length: object) -> None:
    assert load(tmp_path, flags={"num_draft_tokens": given}).settings.num_draft_tokens == length


def test_no_color_and_dumb_terminals(tmp_path: Path) -> None:
    assert load(tmp_path, NO_COLOR="1").settings.no_color is True
    assert load(tmp_path, NO_COLOR="").settings.no_color is None
    assert load(tmp_path, TERM="dumb").dumb_terminal
    assert not load(tmp_path, TERM="xterm").dumb_terminal


def test_places_follow_the_environment() -> None:
    usual = find_places({"HOME": "/h"})
    assert usual.config == Path("/h/.config/mlxmtp/config.toml")
    assert usual.data == Path("/h/.local/share/mlxmtp")
    assert usual.hf_cache == Path("/h/.cache/huggingface/hub")
    xdg = find_places({"HOME": "/h", "XDG_CONFIG_HOME": "/c", "XDG_DATA_HOME": "/d", "XDG_CACHE_HOME": "/e"})
    assert (xdg.config, xdg.data) == (Path("/c/mlxmtp/config.toml"), Path("/d/mlxmtp"))
    assert xdg.hf_cache == Path("/e/huggingface/hub")
    assert (usual.cache, xdg.cache) == (Path("/h/.cache/mlxmtp"), Path("/e/mlxmtp"))
    own = find_places({"HOME": "/h", "MLXMTP_HOME": "/own", "HF_HOME": "/hf"})
    assert own.cache == Path("/own/cache")
    assert (own.config, own.data, own.hf_cache) == (Path("/own/config.toml"), Path("/own"), Path("/hf/hub"))
    assert find_places({"HOME": "/h", "HF_HOME": "/hf", "HF_HUB_CACHE": "/cache"}).hf_cache == Path("/cache")


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"HF_HOME": "$DISK/hf"}, "/d/hf/hub"),
        ({"HF_HUB_CACHE": "${DISK}/$NONE"}, "/d/$NONE"),
        ({"HUGGINGFACE_HUB_CACHE": "$DISK/old", "HF_HOME": "/hf"}, "/d/old"),
        ({"HUGGINGFACE_HUB_CACHE": "/old", "HF_HUB_CACHE": "/new"}, "/new"),
    ],
)
def test_the_cache_is_where_hugging_faces_client_looks(variables: dict[str, str], folder: str) -> None:
    assert find_places({"HOME": "/h", "DISK": "/d", **variables}).hf_cache == Path(folder)


def test_an_empty_home_is_none_and_not_the_root_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pwd.getpwuid", lambda _: SimpleNamespace(pw_dir="/people/me"))
    assert find_places({}) == find_places({"HOME": ""}) == find_places({"HOME": "/people/me"})


def test_the_longest_draft_is_the_same_wherever_it_stands() -> None:
    assert SLACK >= 2 * (MAX_DRAFT + 1)  # a ring holds the rows of two rounds in flight beyond its window
    assert f"0 (off) to {MAX_DRAFT}," in TABLE["num_draft_tokens"].help


def test_a_variable_of_the_environment_is_checked_as_a_flag_is(tmp_path: Path) -> None:
    assert load(tmp_path, MLXMTP_MODEL=" 12 ").settings.model == "12"
    with pytest.raises(ConfigError, match="MLXMTP_MODEL must be the name of a model, not ' '"):
        load(tmp_path, MLXMTP_MODEL=" ")


def test_flags_that_are_no_keys_are_unknown_to_the_config_file(tmp_path: Path) -> None:
    loaded = load(tmp_path, "force = true\ndebug = true\n", {"debug": True})
    assert (loaded.settings.force, loaded.settings.debug) == (None, True)
    assert len(loaded.warnings) == 2


def test_types_of_fields_are_those_that_their_rules_return() -> None:
    hints = get_type_hints(Settings)
    samples = {bool: True, str: "4", int: 4, float: 0.5, list[str]: ["a"]}
    for name, one in TABLE.items():
        kinds = [kind for kind in get_args(hints[name]) if kind is not NoneType]
        allowed = [str if get_origin(kind) is Literal else get_origin(kind) or kind for kind in kinds]
        sample = {"draft_from": "mtp,copy", "exact": "on", "image_tokens": 70}.get(name, samples[one.rule.reads])
        assert type(one.rule.check(sample)) in allowed, name
        assert one.rule.check(object()) is None


def test_what_is_said_about_answers_reaches_them() -> None:
    said = Settings(temp=0.5, min_p=0.1, seed=3, max_tokens=5, think=True, kv_bits=4, num_draft_tokens=2, stop=("a",))
    wanted = Params(temp=0.5, min_p=0.1, seed=3, max_tokens=5, think=True, num_draft_tokens=2, stop_strings=("a",))
    assert answer_params(said) == wanted
    assert answer_params(Settings()) == Params()
    names = {one.of_answer if isinstance(one.of_answer, str) else name for name, one in TABLE.items() if one.of_answer}
    programs = {"stop", "constraint", "top_logprobs", *PENALTIES}  # what people at a terminal do not set
    assert names == {one.name for one in fields(Params)} - programs


def test_sampling_allows_what_its_settings_allow() -> None:
    assert set(SAMPLING) == {one.name for one in fields(Sampling)} - {"penalties"}
    for name, allowed in SAMPLING.items():
        assert TABLE[name].rule.wanted == str(allowed)


def test_a_setting_stands_in_the_table_and_where_it_is_used() -> None:
    """What a new sampling setting must touch. Nothing between the table and the sampling names one."""
    package = ROOT / "mlxmtp"
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"\bmin_p\b", path.read_text(encoding="utf-8"))
    }
    table, used = {"settings.py", "limits.py"}, {"decode/sampling.py", "engine/params.py", "engine/model.py"}
    used |= {"decode/mixed_sampling.py", "models/config_check.py"}  # texts of one round, what a checkpoint recommends
    report = {"app/benchmark.py", "bench/report.py", "bench/compare.py"}  # its keys are a file format
    assert table | used <= found <= table | used | report


def test_the_page_of_settings_is_fresh() -> None:
    """If not: .venv/bin/python scripts/write_settings.py."""
    script = runpy.run_path(str(ROOT / "scripts" / "write_settings.py"))
    assert script["PAGE"].read_text(encoding="utf-8") == script["page"]()
