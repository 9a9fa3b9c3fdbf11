from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import mlxmtp
from mlxmtp.decode.request import fixed_length
from mlxmtp.decode.sampling import Sampling
from mlxmtp.engine.events import Call, End, Text, Thinking
from mlxmtp.engine.model import Model
from mlxmtp.engine.params import Params
from mlxmtp.engine.stats import Meter
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.errors import ContextOverflow, DeviceFailed, LoadError
from mlxmtp.models.config import read_config
from tests.fake_decoder import FakeDecoder
from tests.text_checkpoint import write_text_checkpoint

HI = [{"role": "user", "content": "Hi"}]


class Bench:
    """A model whose network is a queue."""

    def __init__(self, folder: Path) -> None:
        self.decoder = FakeDecoder()
        self.tokenizer = Tokenizer.load(folder)
        self.model = Model(self.decoder, read_config(folder), self.tokenizer, name="fake")

    def enqueue(self, text: str) -> None:
        self.decoder.enqueue(self.tokenizer.encode(text))

    def ask(self, text: str, params: Params | None = None) -> tuple[str, str, End]:
        self.enqueue(text)
        *events, end = self.model.stream(HI, params)
        assert isinstance(end, End)
        answer = "".join(event.text for event in events if isinstance(event, Text))
        return answer, "".join(event.text for event in events if isinstance(event, Thinking)), end


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(write_text_checkpoint(tmp_path, context=100))


def test_an_answer_ends_at_its_stop_token(bench: Bench) -> None:
    answer, thinking, end = bench.ask("<|channel>thought\nhm<channel|>Hello 🦀 é<turn|>never read")
    assert (answer, thinking, end.finish_reason) == ("Hello 🦀 é", "hm", "stop")


def test_the_beginning_of_a_thought_is_nothing_visible(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Meter] = []
    monkeypatch.setattr(Meter, "show", shown.append)
    bench.enqueue("<|channel>thought\n<channel|><turn|>")
    *events, _ = bench.model.stream(HI)
    assert events == [Thinking("")]
    assert not shown


@pytest.mark.parametrize("params", [Params(), Params(top_logprobs=0), Params(stop_strings=("END",))])
def test_text_before_a_call_comes_before_it(bench: Bench, params: Params) -> None:
    bench.enqueue("if a <<|tool_call>call:f{}<tool_call|><|tool_response>")
    *events, call, end = bench.model.stream_ids(bench.tokenizer.prompt_ids(HI), params, calls=True)
    assert (isinstance(call, Call), isinstance(end, End)) == (True, True)
    assert "".join(event.text for event in events if isinstance(event, Text)) == "if a <"


@pytest.mark.parametrize(
    ("text", "reason"), [("a<eos>", "stop"), ("a<turn|>", "stop"), ("a<|tool_response>", "tool"), ("a", "length")]
)
def test_finish_reasons(bench: Bench, text: str, reason: str) -> None:
    assert bench.ask(text)[2].finish_reason == reason


def test_the_length_is_the_smallest_of_flag_checkpoint_and_room(tmp_path: Path) -> None:
    bench = Bench(write_text_checkpoint(tmp_path, context=100, max_new_tokens=30))
    prompt = len(bench.tokenizer.prompt_ids(HI))
    for params, expected in [(Params(), 30), (Params(max_tokens=7), 7), (Params(max_tokens=500), 100 - prompt)]:
        bench.ask("a<eos>", params)
        assert bench.decoder.requests[-1].max_tokens == expected


def test_a_cut_answer_ends_with_a_whole_character(bench: Bench) -> None:
    answer, _, end = bench.ask("🦀🦀", Params(max_tokens=6))
    assert (answer, end.finish_reason) == ("🦀", "length")


def test_a_thought_that_is_cut_stays_a_thought(bench: Bench) -> None:
    assert bench.ask("<|channel>thought\nhm", Params(max_tokens=40))[:2] == ("", "hm")


def test_every_thought_has_its_own_budget(bench: Bench) -> None:
    for part in ("abcd<|channel>m", "nopq", "xyz<|channel>", "rstuvw", "end<eos>"):
        bench.enqueue(part)
    answer = bench.model.stream(HI, Params(think=True, think_tokens=6, max_tokens=90))
    goes_on: list[list[bool]] = []
    ends = bench.tokenizer.encode("<|channel><eos>")
    bench.decoder.before_round = lambda _: goes_on.append([answer.returns_after(one) for one in ends])
    events = list(answer)
    assert all(one == [True, False] for one in goes_on), "after every opening mark, so what is read is kept for that"
    assert "".join(one.text for one in events if isinstance(one, Thinking)) == "mnopqrstuv"
    assert "".join(one.text for one in events if isinstance(one, Text)) == "abcdxyzend"
    written = bench.tokenizer.encode("abcd<|channel>mnopq<channel|>xyz<|channel>rstuv<channel|>end<eos>")
    assert answer.tokens == written
    assert [bench.decoder.requests[call].max_tokens for call in (0, 1, 3)] == [6, 4, 5]


def test_stop_can_be_chosen(bench: Bench) -> None:
    a = bench.tokenizer.encode("a")[0]
    assert bench.ask("bca<eos>d", Params(stop=[a]))[0] == "bc"
    assert bench.ask("b<eos>c", Params(stop=()))[0] == "bc"


def test_sampling_comes_from_the_checkpoint_unless_it_is_given(tmp_path: Path) -> None:
    recommended: dict[str, Any] = {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": 64}
    bench = Bench(write_text_checkpoint(tmp_path, **recommended))
    bench.ask("a<eos>", Params(seed=5))
    used = bench.decoder.requests[-1].sampling
    assert (used.temp, used.top_p, used.top_k, used.min_p, used.seed) == (0.8, 0.95, 64, 0.0, 5)
    bench.ask("a<eos>", Params(temp=0.0, top_k=0, top_p=1.0, min_p=0.1))
    used = bench.decoder.requests[-1].sampling
    assert (used.temp, used.top_p, used.top_k, used.min_p) == (0.0, 1.0, 0, 0.1)


def test_a_checkpoint_that_does_not_sample_is_greedy(tmp_path: Path) -> None:
    bench = Bench(write_text_checkpoint(tmp_path, do_sample=False, temperature=0.8))
    bench.ask("a<eos>")
    assert bench.decoder.requests[-1].sampling.temp == 0.0


def test_a_fresh_seed_is_told(bench: Bench) -> None:
    seeds = {bench.ask("a<eos>")[2].stats.seed for _ in range(5)}
    assert len(seeds) > 1
    assert bench.decoder.requests[-1].sampling.seed in seeds


def test_closing_an_answer_closes_the_rounds_at_once(bench: Bench) -> None:
    bench.enqueue("a long answer<eos>")
    answer = bench.model.stream(HI)
    assert next(answer) == Text("a")
    answer.close()
    assert bench.decoder.closed == 1
    assert answer.stats.generation_tokens == 1


def test_an_answer_that_has_not_begun_has_no_numbers_of_the_one_before(bench: Bench) -> None:
    bench.decoder.reused = 7
    assert bench.model.stream(HI).stats.reused_tokens == 0


def test_a_device_that_fails_at_the_end_ends_the_answer_whose_numbers_can_be_asked_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> int:
        raise DeviceFailed("Insufficient Memory")

    bench.enqueue("abc<eos>")
    monkeypatch.setattr(bench.decoder, "count_near_ties", fail)
    answer = bench.model.stream(HI)
    with pytest.raises(DeviceFailed):
        list(answer)
    assert answer.stats.generation_tokens == 4


def test_an_error_in_the_consumer_can_ask_for_the_numbers_so_far(bench: Bench) -> None:
    bench.enqueue("abcdefg<eos>")
    answer = bench.model.stream(HI)
    next(answer)
    next(answer)
    assert answer.stats.generation_tokens == 4


def test_a_prompt_that_fills_the_context_is_refused_with_both_counts(bench: Bench) -> None:
    long = [{"role": "user", "content": "x" * 200}]
    count = len(bench.tokenizer.prompt_ids(long))
    with pytest.raises(ContextOverflow, match=rf"{count} tokens .* 'fake' holds 100"):
        bench.model.stream(long)
    assert not bench.decoder.requests


def test_without_a_tokenizer_rounds_work_and_stream_says_why_not(bench: Bench) -> None:
    model = Model(bench.decoder, bench.model.config)
    bench.decoder.enqueue([5, 6, 7, 8])
    assert [round_.tokens for round_ in model.rounds([2], max_tokens=4)] == [(5,), (6, 7, 8)]
    with pytest.raises(LoadError, match=r"no tokenizer\.json.*use rounds\(\)"):
        model.stream(HI)


def test_rounds_hand_over_exactly_what_was_asked(bench: Bench) -> None:
    for stop, expected in [(None, {1, 106, 50}), ((), set()), ([9], {9})]:
        bench.decoder.enqueue([5])
        list(bench.model.rounds([2, 3], max_tokens=9, num_draft_tokens=2, temp=0.5, top_k=3, seed=4, stop=stop))
        request = bench.decoder.requests[-1]
        assert set(request.stop) == expected
        assert (request.prompt, request.max_tokens, request.draft) == ([2, 3], 9, 2)
        assert (request.sampling.temp, request.sampling.top_k, request.sampling.seed) == (0.5, 3, 4)


def test_progress_of_the_prompt_is_passed_on(bench: Bench) -> None:
    bench.enqueue("a<eos>")
    seen: list[tuple[int, int]] = []
    list(bench.model.stream_ids([2, 5, 5], on_prefill=lambda done, total: seen.append((done, total))))
    assert seen == [(3, 3)]


def test_no_tokens_at_all_is_refused_where_it_is_said() -> None:
    with pytest.raises(ValueError, match="max_tokens must be a whole number from 1 up, not 0"):
        Params(max_tokens=0)
    with pytest.raises(ValueError, match="think_tokens must be a whole number from 1 up, not -1"):
        Params(think_tokens=-1)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"stop": "\n"}, "token ids"),
        ({"stop": ["###"]}, "token ids"),
        ({"seed": 7.5}, "a whole number"),
        ({"think_tokens": 2.5}, "a whole number"),
        ({"num_draft_tokens": 2.0}, "a whole number"),
        ({"top_logprobs": 2.5}, "a whole number"),
        ({"top_k": 2.5}, "a whole number"),
        ({"top_p": 2}, "to 1, not 2"),
        ({"draft_from": ("mtp", "copy")}, "a text"),
    ],
)
def test_what_is_no_parameter_is_told_where_it_is_given(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Params(**given)


def test_numbers_of_other_libraries_are_numbers() -> None:
    params = Params(
        seed=cast("int", np.int64(7)), num_draft_tokens=cast("int", np.int64(2)), stop=[cast("int", np.int64(1))]
    )
    assert (params.with_seed(), type(params.with_seed())) == (7, int)
    assert Sampling(seed=cast("int", np.int64(7))).key().tolist() == Sampling(seed=7).key().tolist()
    assert type(fixed_length(cast("int", np.int64(2)), ["mtp"])) is int


def test_other_numbers_of_answers_at_a_time_and_ways_to_be_exact_are_refused() -> None:
    model = mlxmtp.load("pocket")
    with pytest.raises(ValueError, match="parallel must be"):
        next(model.stream_many([[{"role": "user", "content": "Hi"}]], parallel=0))
    with pytest.raises(ValueError, match="token ids"):
        model.rounds([2], max_tokens=1, stop="\n")  # type: ignore[arg-type]
    assert len(list(model.rounds([2, 5], max_tokens=2, num_draft_tokens=0, draft_from="mtp,copy", stop=()))) == 2
    with pytest.raises(ValueError, match="exact must be"):
        mlxmtp.load("pocket", exact=False)  # type: ignore[arg-type]
