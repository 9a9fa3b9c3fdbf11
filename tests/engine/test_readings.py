"""Texts read before: what is kept serves prompts that begin with it, and nothing that is wrong with it does harm."""

import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from mlxmtp.app import prompt_cache
from mlxmtp.app.prompt_cache import PromptCache
from mlxmtp.decode.sampling import Sampling
from mlxmtp.engine.model import Model
from tests.golden import load_golden
from tests.networks import tokens

TEXT = [4 + (17 * i + i * i // 3) % 120 for i in range(300)]
GB = 10**9


@pytest.fixture
def prompts(tmp_path: Path) -> PromptCache:
    return PromptCache(tmp_path / "prompts", GB)


def model(family: str = "e2b") -> Model:
    return Model.load(load_golden(family).target, load_golden(family).drafter)


def read(one: Model, text: list[int]) -> None:
    """As an answer to `text` and a question after it does."""
    options: Any = {"max_tokens": 90, "num_draft_tokens": 2, "sampling": Sampling(), "stop": (), "on_prefill": None}
    for _ in one._decoder.rounds([*text, 8, 9], **options, snapshot_at=[len(text)]):
        pass


def kept(prompts: PromptCache, one: Model, text: list[int]) -> str | None:
    read(one, text)
    return prompts.save(one, text)


def said(one: Model, prompt: list[int]) -> list[int]:
    return tokens(one.rounds(prompt, max_tokens=12, num_draft_tokens=2, stop=()))


def files(prompts: PromptCache) -> list[str]:
    return sorted(path.name for path in prompts.folder.iterdir())


def reused(one: Model) -> int:
    return one._decoder.reused


@pytest.mark.parametrize("family", ["e2b", "26b"])
def test_another_process_reads_only_the_question(family, prompts):
    one = model(family)
    assert prompts.load(one, [*TEXT, 5]) == (0, None)
    assert kept(prompts, one, TEXT) is None
    first = said(one, [*TEXT, 5, 6, 7])
    other = model(family)
    assert prompts.load(other, [*TEXT, 5, 6, 7]) == (300, None)
    assert said(other, [*TEXT, 5, 6, 7]) == first == said(model(family), [*TEXT, 5, 6, 7])
    assert reused(other) == 300


def test_the_longest_beginning_serves_and_another_text_does_not(prompts):
    one = model()
    kept(prompts, one, TEXT[:260])
    kept(prompts, one, TEXT[:290])
    assert reused(one) == 260
    assert len(files(prompts)) == 2
    for prompt, length in [(TEXT, 290), (TEXT[:280], 260), (TEXT[:260], 0), ([9, *TEXT], 0), ([*TEXT[:259], 9, 9], 0)]:
        assert prompts.load(model(), prompt) == (length, None)


def test_a_short_text_is_not_worth_a_file(prompts):
    assert kept(prompts, model(), TEXT[:255]) is None
    assert not prompts.folder.exists()


def test_other_models_do_not_see_it(prompts):
    kept(prompts, model("e2b"), TEXT)
    assert prompts.load(model("e4b"), [*TEXT, 5]) == (0, None)


@pytest.mark.parametrize("left", [0, 9, 5000])
def test_a_damaged_file_is_said_and_replaced(left, prompts):
    one = model()
    kept(prompts, one, TEXT[:260])
    kept(prompts, one, TEXT)
    path = max(prompts.folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    path.write_bytes(path.read_bytes()[:left])
    other = model()
    length, note = prompts.load(other, [*TEXT, 5])
    assert length == 260
    assert note is not None
    assert "read again" in note
    assert said(other, [*TEXT, 5]) == said(model(), [*TEXT, 5])
    kept(prompts, model(), TEXT)
    assert prompts.load(model(), [*TEXT, 5]) == (300, None)


def test_a_file_of_another_model_under_this_ones_name_is_refused(prompts):
    kept(prompts, model("e2b"), TEXT)
    (mine,) = prompts.folder.iterdir()
    kept(prompts, model("e4b"), TEXT)
    (foreign,) = set(prompts.folder.iterdir()) - {mine}
    shutil.copy(foreign, mine)
    length, note = prompts.load(model("e2b"), [*TEXT, 5])
    assert length == 0
    assert note is not None
    assert "another model" in note


def test_what_has_not_served_for_longest_goes_first(prompts):
    one = model()
    for begin in (0, 10, 20):
        kept(prompts, one, TEXT[begin : begin + 270])
    paths = {
        begin: prompts._path(one, 270, sha256(prompt_cache._bytes(TEXT[begin : begin + 270])).hexdigest())
        for begin in (0, 10, 20)
    }
    for age, begin in enumerate((0, 10, 20)):
        os.utime(paths[begin], (1000 - age, 1000 - age))  # 20 is the oldest, 0 the newest
    foreign = prompts.folder / "notes.txt"
    foreign.write_text("mine")
    assert prompts.load(model(), [*TEXT[20:290], 5]) == (270, None)  # now it is the youngest
    size = paths[0].stat().st_size
    kept(PromptCache(prompts.folder, int(3.5 * size)), one, TEXT[25:295])
    assert not paths[10].exists()
    assert paths[0].exists()
    assert paths[20].exists()
    note = kept(PromptCache(prompts.folder, size // 2), one, TEXT[28:298])
    assert note is not None
    assert "cache_gb" in note
    assert files(prompts) == ["notes.txt"]


def test_a_text_that_is_too_large_by_itself_drives_no_other_out(prompts):
    one = model()
    kept(prompts, one, TEXT[:260])
    (small,) = prompts.folder.iterdir()
    note = kept(PromptCache(prompts.folder, small.stat().st_size + 100), one, TEXT)
    assert note is not None
    assert "cache_gb" in note
    assert list(prompts.folder.iterdir()) == [small]


def test_what_a_killed_process_left_goes_after_an_hour(prompts):
    prompts.folder.mkdir()
    old, new = prompts.folder / ".a.1.safetensors", prompts.folder / ".b.2.safetensors"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    kept(prompts, model(), TEXT)
    assert not old.exists()
    assert new.exists()


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    note = kept(PromptCache(tmp_path / "file" / "prompts", GB), model(), TEXT)
    assert note is not None
    assert "could not be kept" in note


def test_two_processes_at_once(prompts, tmp_path):
    """Both keep and remove in one folder, with room for two files; whatever is there at the end is whole."""
    script = (
        "import sys; from pathlib import Path\n"
        "from tests.engine.test_readings import TEXT, kept, model; from mlxmtp.app.prompt_cache import PromptCache\n"
        "one, prompts = model(), PromptCache(Path(sys.argv[1]), int(sys.argv[2]))\n"
        "for i in range(8):\n"
        "    begin = i % 4\n"
        "    held, note = prompts.load(one, TEXT[begin : begin + 261])\n"
        "    print(note if held else kept(prompts, one, TEXT[begin : begin + 260]))\n"
    )
    kept(prompts, model(), TEXT[:260])
    size = next(prompts.folder.iterdir()).stat().st_size
    arguments: list[Any] = [sys.executable, "-c", script, str(prompts.folder), str(int(2.5 * size))]
    both = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        assert set(printed.split("\n")) <= {"None", "", *(line for line in printed.split("\n") if "could not" in line)}
    for begin in range(4):
        length, note = prompts.load(model(), TEXT[begin : begin + 261])
        assert length in (0, 260)
        assert note is None
