"""Training on from a published model: its files are kept, its tokenizer stays, the rate is a later cycle's."""

import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer as Encoder

POCKET = Path(__file__).parents[1] / "assets/pocket"
TOKENIZER = POCKET / "target/tokenizer.json"


def training(name):
    """A module of the training code, which is no part of the package."""
    return import_module(f"scripts.pocket.{name}")


start, tokenizer, layout = training("start"), training("tokenizer"), training("layout")
corpus, task = training("corpus"), training("tasks.task")


def test_a_run_keeps_what_it_began_with_when_the_published_model_is_replaced(tmp_path):
    work, published = tmp_path / "work", tmp_path / "pocket"
    work.mkdir()
    shutil.copytree(POCKET, published)
    start.keep(published, work)
    (published / "target/tokenizer.json").write_text("{}")
    shutil.rmtree(published / "drafter")
    start.keep(published, work)
    assert (start.folder(work) / "target/tokenizer.json").read_bytes() == TOKENIZER.read_bytes()
    assert (start.folder(work) / "drafter/model.safetensors").is_file()


def test_what_cannot_be_begun_with_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(SystemExit, match="has no target/model"):
        start.keep(tmp_path / "nothing", tmp_path)
    assert not start.begun(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(SystemExit, match="begun without --start"):
        start.keep(POCKET, tmp_path)


def test_a_published_model_is_trained_on_with_more_tasks_new_subjects_and_drills(tmp_path):
    def drawn():
        generator = start.generator(tmp_path, 1, 40)
        made = [generator.draw(index) for index in range(1200)]
        tasks = sum(isinstance(one, task.Task) for one in made)
        turns = [one.turns[0].subject for one in made if getattr(one, "drill", False)]
        return tasks, len(turns), sum(subject in new for subject in turns)

    shutil.copytree(corpus.FOLDER, tmp_path / "corpus")
    subjects = start.generator(tmp_path, 1, 40).subjects
    new = {subjects[one.id] for one in corpus.load() if one.new}
    from_nothing = drawn()
    start.folder(tmp_path).mkdir()
    tasks, drills, about_new = drawn()
    assert tasks > 1.5 * from_nothing[0]
    assert drills / (1200 - tasks) > from_nothing[1] / (1200 - from_nothing[0])
    assert about_new / drills > 2 * from_nothing[2] / from_nothing[1]


def test_towers_are_trained_on_where_the_published_model_has_some(tmp_path):
    assert not start.has(tmp_path, "vision")
    for part in ("target", "drafter"):
        (start.folder(tmp_path) / part).mkdir(parents=True)
    one = {"model.language_model.norm.weight": np.ones(4), "model.vision_tower.std_bias": np.ones(4)}
    save_file(one, start.folder(tmp_path) / "target/model.safetensors")
    save_file({"norm.weight": np.ones(4)}, start.folder(tmp_path) / "drafter/model.safetensors")
    found = {part: start.has(tmp_path, part) for part in ("vision", "hearing", "target", "drafter")}
    assert found == {"vision": True, "hearing": False, "target": True, "drafter": True}


def test_a_renewed_tokenizer_has_the_marks_of_today_and_encodes_text_as_before():
    old, new = Encoder.from_file(str(TOKENIZER)), tokenizer.renewed(TOKENIZER)
    assert new.get_vocab_size() == 4096
    assert [new.token_to_id(name) for name in layout.SPECIAL.values()] == [*layout.SPECIAL]
    assert {i: new.id_to_token(i) for i in range(107, 4096)} == {i: old.id_to_token(i) for i in range(107, 4096)}
    for text in (
        "<bos><|turn>user\nHow do I pipe a file?<turn|>\n<|turn>model\n",
        "def f(x):\n    return {x: 'é'}",
        "—",
    ):
        assert new.encode(text, add_special_tokens=False).ids == old.encode(text, add_special_tokens=False).ids


def test_trained_weights_are_spared_the_cycle_at_full_rate():
    pytest.importorskip("torch")
    train = training("train")
    rates = [train.rate(step, (0, 100), 0.4) for step in range(101)]
    assert max(rates) < 0.51
    assert rates[0] == rates[100] == pytest.approx(0.02)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert max(train.rate(step, (100,), 0.4) for step in range(101)) == 1.0
