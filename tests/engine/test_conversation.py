"""Conversations with the built-in model: every turn reads only what is new and says what a fresh model would say."""

from pathlib import Path
from typing import Any

import pytest

import mlxmtp
from mlxmtp.decode.decoder import Decoder
from mlxmtp.engine.events import End, Text, Thinking
from mlxmtp.engine.model import Model
from mlxmtp.engine.params import Params
from mlxmtp.engine.stats import Stats
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.limits import SLACK
from mlxmtp.models.load import load_drafter, load_target

POCKET = Path(__file__).parents[2] / "assets/pocket"
QUESTIONS = [
    "What is a drafter?", "How do I download a model?", "What is the capital of Peru?", "What does --top-k do?",
    "How do I see what is installed?", "Does drafting change the text?", "What is MTP?", "Thank you!",
]  # fmt: skip
Messages = list[dict[str, str]]


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any, Tokenizer]:
    target = load_target(POCKET / "target")
    return target, load_drafter(POCKET / "drafter", target), Tokenizer.load(POCKET / "target")


@pytest.fixture
def fresh(parts):
    def make(*, drafts: bool = True) -> Model:
        target, drafter, tokenizer = parts
        return Model(Decoder(target, drafter if drafts else None, compiled="never"), target.config, tokenizer)

    return make


def turn(model: Model, messages: Messages, params: Params, **options: Any) -> tuple[str, str, Stats]:
    text = thought = ""
    for event in model.stream(messages, params, **options):
        if isinstance(event, Text):
            text += event.text
        elif isinstance(event, Thinking):
            thought += event.text
        elif isinstance(event, End):
            return text, thought, event.stats
    raise AssertionError("a stream ends with End")


@pytest.mark.few(1)
@pytest.mark.parametrize("think", [False, True])
def test_eight_turns_read_each_token_of_their_history_once(fresh, think):
    model, messages, before, written = fresh(), [], 0, 0
    params = Params(temp=0.0, think=think, max_tokens=100)
    for number in range(8):
        messages.append({"role": "user", "content": QUESTIONS[number % len(QUESTIONS)]})
        text, thought, stats = turn(model, messages, params)
        assert bool(thought) == think
        if number:
            # A thought is left out of the next prompt: its answer is read again, nothing before it is.
            assert stats.reused_tokens == before if think else stats.reused_tokens >= before + written - 2
        before, written = stats.prompt_tokens, stats.generation_tokens
        if number % 4 == 3:
            assert turn(fresh(), messages, params)[:2] == (text, thought)
        messages.append({"role": "assistant", "content": text})


@pytest.mark.few(1)
@pytest.mark.parametrize("think", [False, True])
def test_answering_again_and_taking_back_read_almost_nothing(fresh, think):
    model, params = fresh(), Params(temp=0.0, think=think, max_tokens=150)
    messages = [{"role": "user", "content": "Tell me about all commands"}]
    first = turn(model, messages, params)
    again = turn(model, messages, params)
    assert again[:2] == first[:2]
    assert again[2].reused_tokens == first[2].prompt_tokens
    longer = [*messages, {"role": "assistant", "content": first[0]}, {"role": "user", "content": "What is a round?"}]
    second = turn(model, longer, params)
    other = [*longer[:-1], {"role": "user", "content": "What is bench?"}]
    edited = turn(model, other, params)
    assert edited[2].reused_tokens >= first[2].prompt_tokens
    assert edited[:2] == turn(fresh(), other, params)[:2]
    assert turn(model, longer, params)[:2] == second[:2]


@pytest.mark.few(1)
@pytest.mark.parametrize("think", [False, True])
def test_another_question_about_a_long_text_does_not_read_the_text_again(fresh, think):
    model, params = fresh(), Params(temp=0.0, think=think, max_tokens=150)
    text = "A drafter proposes tokens, and the target checks them in one pass. " * 60

    def ask(model: Model, question: str) -> tuple[str, str, Stats]:
        return turn(model, [{"role": "user", "content": f"{text}\n\n{question}"}], params, question=question)

    first = ask(model, "Tell me about all commands")
    assert first[2].generation_tokens > SLACK
    for question in ("What is bench?", "How do I see what is installed, and how much memory will it take?"):
        other = ask(model, question)
        assert other[2].reused_tokens > 800
        assert other[2].prompt_tokens - other[2].reused_tokens < 40
        assert other[:2] == ask(fresh(), question)[:2]


def test_an_answer_that_was_closed_is_continued_from_where_it_stood(fresh):
    model, params = fresh(), Params(temp=0.0)
    messages = [{"role": "user", "content": "List all commands"}]
    whole = turn(fresh(), messages, params)[0]
    answer, kept = model.stream(messages, params), ""
    for event in answer:
        kept += event.text if isinstance(event, Text) else ""
        if len(kept) > 60:
            break
    answer.close()
    begun = [*messages, {"role": "assistant", "content": kept}]
    rest, _, stats = turn(model, begun, params, continues=True)
    assert kept + rest == whole
    assert stats.prompt_tokens - stats.reused_tokens <= 3


@pytest.mark.few(2)
@pytest.mark.parametrize("drafts", [0, 3, "auto"])
def test_a_thought_ends_at_its_budget_whatever_is_drafted(fresh, drafts):
    messages = [{"role": "user", "content": "What is a drafter?"}]
    full = turn(fresh(), messages, Params(temp=0.0, think=True))
    params = Params(temp=0.0, think=True, think_tokens=8, num_draft_tokens=drafts)
    model = fresh()
    text, thought, stats = turn(model, messages, params)
    assert full[1].startswith(thought)
    assert 0 < len(thought) < len(full[1])
    assert text
    assert "channel" not in text
    assert (text, thought) == turn(fresh(drafts=False), messages, params)[:2]
    assert stats.generation_tokens > 9
    roomy = turn(model, messages, Params(temp=0.0, think=True, think_tokens=400, num_draft_tokens=drafts))
    assert roomy[:2] == full[:2]


def test_a_budget_beyond_the_limit_of_the_answer_changes_nothing(fresh):
    messages = [{"role": "user", "content": "What is a drafter?"}]
    for tokens in (5, 9, 10):
        cut = turn(fresh(), messages, Params(temp=0.0, think=True, max_tokens=tokens))
        limited = turn(fresh(), messages, Params(temp=0.0, think=True, max_tokens=tokens, think_tokens=9))
        assert limited[2].generation_tokens == cut[2].generation_tokens == tokens


def test_a_template_that_opens_each_answer_with_an_empty_thought_is_returned_to_before_it(tmp_path):
    for path in (POCKET / "target").iterdir():
        (tmp_path / path.name).symlink_to(path)
    template = tmp_path / "chat_template.jinja"
    source = template.read_text()
    template.unlink()
    opening = r"'<|turn>model\n' -}}{%- endif -%}"
    before, found, after = source.rpartition(opening)
    assert found
    template.write_text(before + opening.replace("model\\n", r"model\n<|channel>thought\n<channel|>") + after)
    tokenizer = Tokenizer.load(tmp_path)
    messages = [{"role": "user", "content": "Hi"}]
    ids = tokenizer.prompt_ids(messages)
    assert tokenizer.encode("<|channel>thought\n<channel|>") == ids[tokenizer.lasting(messages, ids) :]


def test_the_beginning_of_a_continued_answer_is_penalized_as_a_part_of_it():
    """Presence and frequency are those of the whole answer, whether it was interrupted or not."""
    model = mlxmtp.load("pocket", drafter=False)
    ids = model.tokenizer.prompt_ids([{"role": "user", "content": "What is a drafter?"}])
    params = Params(temp=0.0, max_tokens=60, presence_penalty=2.0, frequency_penalty=2.0, stop=())

    def said(prompt: list[int], **options: Any) -> list[int]:
        answer = model.stream_ids(prompt, params, **options)
        list(answer)
        return answer.tokens

    whole = said(ids)
    assert said(ids + whole[:40], begun=whole[:40])[:20] == whole[40:]
    assert said(ids + whole[:40])[:20] != whole[40:]
