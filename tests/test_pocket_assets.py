"""The built-in model's files: sizes, layout, tokenizer and chat template, and the training data behind them."""

import json
from importlib import import_module
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Encoder

from mlxmtp.engine.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]
POCKET = ROOT / "assets/pocket"
SPECIAL = {
    0: "<pad>", 1: "<eos>", 2: "<bos>", 46: "<|tool>", 47: "<tool|>", 48: "<|tool_call>", 49: "<tool_call|>",
    50: "<|tool_response>", 51: "<tool_response|>", 52: '<|"|>', 98: "<|think|>", 100: "<|channel>",
    101: "<channel|>", 105: "<|turn>", 106: "<turn|>",
}  # fmt: skip


@pytest.fixture(scope="module")
def encoder():
    return Encoder.from_file(str(POCKET / "target/tokenizer.json"))


def training(name):
    """A module of the training code, which is no part of the package."""
    return import_module(f"scripts.pocket.{name}")


def tensors(folder):
    """Name -> (dtype, shape) from the header of model.safetensors."""
    with (folder / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert header.pop("__metadata__") == {"format": "pt"}
    return {name: (entry["dtype"], entry["shape"]) for name, entry in header.items()}


def test_everything_fits_into_40_megabytes():
    assert sum(path.stat().st_size for path in POCKET.rglob("*") if path.is_file()) <= 40_000_000


def test_tensors_have_the_published_names_and_are_bfloat16():
    target, drafter = tensors(POCKET / "target"), tensors(POCKET / "drafter")
    towers = {"vision_tower", "embed_vision", "audio_tower", "embed_audio"}
    assert {name.split(".")[1] for name in target} - {"language_model"} in (set(), towers)
    assert {dtype for dtype, _ in target.values()} == {"BF16"}
    assert target["model.language_model.embed_tokens.weight"] == ("BF16", [4096, 256])
    assert drafter.pop("masked_embedding.token_ordering") == ("I64", [4096])
    assert {dtype for dtype, _ in drafter.values()} == {"BF16"}
    assert drafter["masked_embedding.centroids.weight"] == ("BF16", [64, 128])
    assert drafter["pre_projection.weight"] == ("BF16", [128, 512])
    assert drafter["post_projection.weight"] == ("BF16", [256, 128])


def test_the_configuration_is_e2bs_made_small():
    config = json.loads((POCKET / "target/config.json").read_text())
    text = config["text_config"]
    assert config["model_type"] == "gemma4"
    assert config["vocab_size"] == text["vocab_size"] == text["vocab_size_per_layer_input"] == 4096
    assert text["layer_types"] == (["sliding_attention"] * 4 + ["full_attention"]) * 3
    assert (text["num_kv_shared_layers"], text["use_double_wide_mlp"], text["global_head_dim"]) == (5, True, 128)
    generation = json.loads((POCKET / "target/generation_config.json").read_text())
    assert (generation["temperature"], generation["top_k"], generation["top_p"]) == (1.0, 64, 0.95)
    assert generation["do_sample"] is True
    assert generation["eos_token_id"] == [1, 106, 50]


def test_special_tokens_stand_at_gemmas_ids_and_are_single(encoder):
    assert encoder.get_vocab_size() == 4096
    for number, name in SPECIAL.items():
        assert encoder.encode(name, add_special_tokens=False).ids == [number]


@given(st.text(alphabet=st.characters(exclude_characters="\u2581", exclude_categories=["Cs"])))
def test_any_text_comes_back_from_the_tokenizer(text):
    encoder = Encoder.from_file(str(POCKET / "target/tokenizer.json"))
    if not any(name in text for name in SPECIAL.values()):
        assert encoder.decode(encoder.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text


def test_the_writing_sign_of_spaces_comes_back_as_a_space(encoder):
    """As in every tokenizer of this scheme: the one text that is not kept."""
    assert encoder.decode(encoder.encode("a\u2581b", add_special_tokens=False).ids) == "a b"


def test_the_chat_template_writes_what_training_read():
    conversation, layout = training("conversation"), training("layout")
    tokenizer = Tokenizer.load(POCKET / "target")
    turns = (
        conversation.Turn("Hi", "Greet.", "Hello.", 0),
        conversation.Turn("And you?", "Say how.", "Fine, `thanks`.", 1),
    )
    for system in ("", "Be brief."):
        for thinking in (False, True):
            pieces = list(layout.segments(conversation.Conversation(turns, system, thinking)))
            asked = "".join(piece.text for piece in pieces[:-1])
            messages = [{"role": "system", "content": system}] if system else []
            messages += [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "<|channel>thought\nGreet.\n<channel|>Hello."},
                {"role": "user", "content": " And you? "},
            ]
            assert tokenizer.render(messages, think=thinking) == asked
            whole = tokenizer.prompt_ids(messages, think=thinking)
            apart = [i for piece in pieces[:-1] for i in tokenizer.encode(piece.text)]
            assert whole == apart


def test_the_chat_template_refuses_roles_it_does_not_know():
    with pytest.raises(Exception, match="not critic"):
        Tokenizer.load(POCKET / "target").render([{"role": "critic", "content": "x"}])


def test_the_corpus_is_sound_and_every_answer_keeps_to_the_vocabulary(encoder):
    corpus = training("corpus")
    intents = corpus.load()
    assert any(intent.refuses for intent in intents)
    for intent in intents:
        for answer in (a for part in (intent, *intent.follow) for a in part.answers):
            assert len(encoder.encode(answer).ids) < 1000
            assert "<|" not in answer


def test_a_mistake_in_the_corpus_names_file_and_intent(tmp_path):
    corpus = training("corpus")
    (tmp_path / "x.toml").write_text('[[intent]]\nid = "one"\ntopic = "t"\nthink = "t"\nq = ["(a|b"]\na = ["c"]\n')
    with pytest.raises(corpus.CorpusError, match=r"x\.toml: intent 1 \(one\): a '\(' is never closed"):
        corpus.load(tmp_path)
    (tmp_path / "x.toml").write_text('[[intent]]\nid = "one"\ntopic = "t"\nthink = "t"\nq = ["a"]\n')
    with pytest.raises(corpus.CorpusError, match=r"x\.toml: intent 1 \(one\): a must be a list of texts"):
        corpus.load(tmp_path)


def test_patterns_expand_to_what_their_matcher_accepts():
    import re

    patterns = training("patterns")
    sequence = patterns.parse(r"(what (is|does)|explain)( the|) `-x` \(really\)")
    assert patterns.count(sequence) == 6
    seen = {patterns.expand(sequence, Random(seed)) for seed in range(99)}
    assert len(seen) == 6
    assert "explain `-x` (really)" in seen
    accepts = re.compile(patterns.matcher(sequence))
    assert all(accepts.fullmatch(patterns.squash(text)) for text in seen)
    assert not accepts.fullmatch(patterns.squash("explain -y really"))


def test_conversations_are_the_same_for_the_same_seed_and_index():
    corpus, conversation = training("corpus"), training("conversation")
    intents = corpus.load()
    first, again = conversation.Generator(intents, 3), conversation.Generator(intents, 3)
    assert [first.draw(i) for i in range(50)] == [again.draw(i) for i in range(50)]
    assert first.draw(1) != first.draw(1, held_out=True)
