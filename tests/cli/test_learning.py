"""What a turn learns about drafting is there at the next start, and only then, and only for the same pair."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from mlxmtp.app.open import LearnedDrafting, OpenModel
from mlxmtp.app.turn import Turn
from mlxmtp.chat.conversation import Conversation
from mlxmtp.chat.history import Exchange
from mlxmtp.decode.draft_length import DraftLength
from mlxmtp.engine.answer import Answer
from mlxmtp.engine.events import Text
from mlxmtp.engine.model import Model
from mlxmtp.engine.params import Params
from mlxmtp.engine.stats import Stats
from mlxmtp.hub.store import Store
from mlxmtp.models.config import read_config
from mlxmtp.settings import Places
from tests.fake_decoder import FakeDecoder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def places(tmp_path):
    return Places(tmp_path / "config.toml", tmp_path / "data", tmp_path / "hub", tmp_path / "hub")


@pytest.fixture
def pair(places):
    store = Store(places, {})
    target = store.resolve("pocket")
    return target, store.drafter_for(target, None)


def model_of(pair):
    decoder = FakeDecoder()
    decoder.depth = DraftLength()
    return Model(decoder, read_config(pair[0].folder)), decoder


def learned_of(model, pair, places, draft_bits=None):
    """What is known about the pair, begun with."""
    learned = LearnedDrafting.of_pair(model, pair[1].folder, places.data, draft_bits)
    learned.start(model)
    return learned


def teach(decoder, rounds=40):
    for _ in range(rounds):
        for k in (0, 2):
            decoder.depth.observe(k, min(k, 1), 0.01 * (1 + 0.4 * k))


def test_the_next_start_begins_with_what_was_learned(places, pair):
    model, decoder = model_of(pair)
    learned = learned_of(model, pair, places)
    assert decoder.depth == DraftLength()
    teach(decoder)
    learned.save(model)
    again, started = model_of(pair)
    learned_of(again, pair, places)
    assert started.depth != DraftLength()
    assert started.depth.price() == pytest.approx(0.4, abs=0.1)
    packed, fresh = model_of(pair)
    packed.kv_bits = 4
    learned_of(packed, pair, places)
    assert fresh.depth == DraftLength()
    other, untouched = model_of(pair)
    learned_of(other, pair, places, draft_bits=4)
    assert untouched.depth == DraftLength()


def test_ctrl_c_keeps_it_too(places, pair):
    model, decoder = model_of(pair)
    turn = Turn(Conversation(), "ask", Exchange("Hi"))
    turn.begin(OpenModel(model, pair[0], pair[1], learned_of(model, pair, places)), Params())

    class Taught(list):
        stats = Stats()

        def close(self):
            teach(decoder)

    def interrupted(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        turn.run(cast("Answer", Taught([Text("a")])), interrupted)
    assert len(list((places.data / "tuning").iterdir())) == 1


def test_a_short_answer_teaches_nothing(places, pair):
    model, decoder = model_of(pair)
    teach(decoder, rounds=3)
    learned_of(model, pair, places).save(model)
    assert not (places.data / "tuning").exists()


def test_without_a_drafter_nothing_is_read_or_written(places, pair):
    model, decoder = model_of(pair)
    learned = LearnedDrafting.of_pair(model, None, places.data)
    learned.start(model)
    teach(decoder)
    learned.save(model)
    assert not places.data.exists()


def test_numbers_that_cannot_be_are_passed_over(places, pair):
    model, decoder = model_of(pair)
    teach(decoder)
    learned_of(model, pair, places).save(model)
    [path] = (places.data / "tuning").iterdir()
    path.write_text(path.read_text().replace('"kinds": [', '"kinds": [7,'))
    again, started = model_of(pair)
    learned_of(again, pair, places)
    assert started.depth == DraftLength()


def test_another_drafter_in_the_same_place_is_another_pair(places, pair, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(pair[1].folder, copy)
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    moved = replace(pair[1], folder=copy)
    model, decoder = model_of(pair)
    teach(decoder)
    learned_of(model, pair, places).save(model)
    again, started = model_of(pair)
    learned_of(again, (pair[0], moved), places)
    assert started.depth == DraftLength()
