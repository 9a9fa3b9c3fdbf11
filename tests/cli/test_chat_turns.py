"""Turns of a conversation as exact transcripts: the model is a queue, the terminal is paper."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest

from mlxmtp.app.open import LearnedDrafting, OpenModel
from mlxmtp.app.worker import Worker
from mlxmtp.cli.repl import turns
from mlxmtp.cli.repl.chat import Chat
from mlxmtp.cli.repl.slash import Line
from mlxmtp.cli.terminal.keyboard import CTRL_T, Keyboard
from mlxmtp.cli.terminal.output import Look
from mlxmtp.decode.draft_length import DraftLength
from mlxmtp.engine.model import Model
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.errors import TooLarge
from mlxmtp.hub.store import Checkpoint
from tests.cli.talking import Conversing


@pytest.fixture
def talk(tmp_path: Path) -> Conversing:
    return Conversing(tmp_path)


def test_two_turns(talk: Conversing) -> None:
    assert talk.say("Hi", "And you?", answers=["Hello.<turn|>", "Fine.<turn|>"]) == (
        "> Hi\n\nHello.\n"
        "7 tok · S tok/s · 3.0 tok/pass, 67 % accepted · prompt 18 tok T s · context 25/400\n\n"
        "> And you?\n\nFine.\n"
        "6 tok · S tok/s · 2.5 tok/pass, 50 % accepted · prompt 49 tok T s · context 55/400\n\n"
    )
    assert talk.prompts[1] == (
        "<bos><|turn>user\nHi<turn|>\n<|turn>model\nHello.<turn|>\n<|turn>user\nAnd you?<turn|>\n<|turn>model\n"
    )


def test_a_thought_folds_and_never_comes_back(talk: Conversing) -> None:
    talk.change(think=True)
    shown = talk.say("Hi", "Bye", answers=["<|channel>thought\nLet me see.<channel|>Yes.<turn|>", "No.<turn|>"])
    assert shown.startswith("> Hi\n\nLet me see.\n\nthought for 0.0 s\n\nYes.\n")
    assert "Let me see" not in talk.prompts[1]
    assert "<|think|>" in talk.prompts[1]


class PressedKeys(Keyboard):
    """Ctrl+T, from the thread of the model."""

    def __init__(self) -> None:
        super().__init__()
        self._pressed, self._button = os.pipe()
        self.descriptors = (self._pressed,)
        self.taken = Event()

    def __enter__(self) -> Keyboard:
        return self

    def pressed(self) -> str:
        os.read(self._pressed, 1)
        self.taken.set()
        return CTRL_T

    def press(self) -> None:
        os.write(self._button, b"\0")
        assert self.taken.wait(60)

    def close(self) -> None:
        os.close(self._pressed)
        os.close(self._button)


def test_a_thought_that_ctrl_t_has_hidden_stays_hidden_in_the_next_answer(talk: Conversing) -> None:
    keys = talk.talk.keys = PressedKeys()
    talk.change(think=True)
    talk.decoder.before_round = lambda number: keys.press() if number == 2 and not keys.taken.is_set() else None
    answers = [f"<|channel>thought\nLet me see {word}.<channel|>Yes.<turn|>" for word in ("once", "again")]
    shown = talk.say("Hi", "And?", "/think", answers=answers)
    keys.close()
    second = shown.partition("> And?")[2]
    assert second.startswith("\n\nthought for 0.0 s\n\nYes.\n")
    assert "Thinking is on and hidden." in second


def test_ctrl_c_keeps_what_was_said(talk: Conversing) -> None:
    shown = talk.say("Hi", "Next", answers=["One two{stop} three four five<turn|>", "Ok.<turn|>"])
    said = talk.talk.conversation.exchanges[0].reply
    assert said is not None
    assert said.finish_reason == "cancelled"
    assert said.text.startswith("One two")
    assert "five" not in said.text
    assert f"> Hi\n\n{said.text.rstrip()}" in shown
    assert "\nstopped · " in shown
    assert f"<|turn>model\n{said.text.strip()}<turn|>\n<|turn>user\nNext" in talk.prompts[1]
    assert "> Next\n\nOk.\n" in shown


def test_ctrl_c_within_a_thought_takes_the_question_back(talk: Conversing) -> None:
    talk.change(think=True)
    shown = talk.say("Hi", answers=["<|channel>thought\nLong{stop} and longer and longer<channel|>Yes.<turn|>"])
    assert "Stopped before the answer began." in shown
    assert "Yes" not in shown
    assert talk.given == "Hi"
    assert talk.talk.conversation.exchanges == ()
    assert "> Hi\n\nYes.\n" in talk.say("Hi", answers=["Yes.<turn|>"])


def test_ctrl_c_while_the_prompt_is_read(talk: Conversing) -> None:
    """The thread is told at the next piece of the prompt; here that is before the first round."""
    shown = talk.say("Hi", answers=["{stop}Yes and more and more<turn|>"])
    assert "stopped" in shown.lower()
    assert "> Hi\n\nYes.\n" in talk.say("Hi", answers=["Yes.<turn|>"])


def test_a_model_that_does_not_react_is_left_at_the_third_ctrl_c(
    talk: Conversing, monkeypatch: pytest.MonkeyPatch
) -> None:
    pressed, begun, gate = 0, Event(), Event()

    def struck(*_: int, **__: object) -> bool:
        nonlocal pressed
        begun.wait(60)  # sooner, the prompt would not even be read
        pressed += 1
        if pressed > 3:
            gate.set()
        signal.raise_signal(signal.SIGINT)
        return False

    def stuck(_: int) -> None:
        begun.set()
        gate.wait(60)

    talk.decoder.before_round = stuck
    monkeypatch.setattr(talk.worker, "wait", struck)
    talk.say("Hi", "never read", answers=["Hello.<turn|>"])
    gate.set()
    assert pressed == 3
    assert talk.script.lines == ["never read"]


def test_ctrl_c_while_a_file_is_read(talk: Conversing, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: str) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr("mlxmtp.cli.repl.turns.mentions", interrupted)
    assert talk.say("Read @it") == "> Read @it\n\nStopped.\n"
    assert talk.given == "Read @it"


def test_ctrl_c_as_an_answer_ends_changes_nothing(talk: Conversing, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = talk.talk.conversation
    finish = conversation.finish

    def struck(*args: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        finish(*args)

    monkeypatch.setattr(conversation, "finish", struck)
    assert talk.say("Hi", answers=["Hello.<turn|>"]).startswith("> Hi\n\nHello.\n7 tok · ")
    assert talk.given == ""
    assert [one.reply and one.reply.text for one in conversation.exchanges] == ["Hello."]


def test_ctrl_c_and_ctrl_d_at_the_prompt(talk: Conversing) -> None:
    assert talk.say(KeyboardInterrupt) == "Ctrl+D leaves, /help lists the commands.\n"


def test_an_answer_at_the_limit_can_be_gone_on_with(talk: Conversing) -> None:
    talk.change(max_tokens=4)
    shown = talk.say("Hi", answers=["One two three<turn|>"])
    assert "The answer was cut after 4 tokens. /continue goes on.\n" in shown


@pytest.mark.parametrize("fence", ["```python", "~~~"])
def test_a_code_block_that_was_cut_goes_on_as_code(talk: Conversing, fence: str) -> None:
    talk.talk.out.look = Look(color=False)
    begun = f"So:\n\n{fence}\nx = 1\n"
    talk.change(max_tokens=len(talk.tokenizer.encode(begun)))
    talk.say("Hi", answers=[begun])
    talk.change(max_tokens=None)
    shown = talk.say("/continue", answers=[f"# one\ny = 2 **3** 4\n{fence[:3]}\n\nand **this**.<turn|>"])
    assert "\n\n# one\ny = 2 **3** 4\n\nand this.\n" in re.sub(r"\x1b\[[0-9;]*m", "", shown)
    (exchange,) = talk.talk.conversation.exchanges
    assert exchange.reply is not None
    assert exchange.reply.text.startswith(f"{begun}# one\n")


def test_a_question_that_does_not_fit_is_refused_with_both_counts(talk: Conversing) -> None:
    shown = talk.say("x" * 400)
    assert "Error: With this question the prompt has 416 tokens; the context holds 400, of which 50 are kept" in shown
    assert talk.given == "x" * 400
    assert talk.talk.conversation.exchanges == ()


def test_what_only_an_estimate_finds_too_long_can_be_sent(talk: Conversing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tokenizer, "estimates", True)
    talk.say("y" * 150, answers=["z" * 60 + "<turn|>"])
    talk.script.answers = [False, True]
    shown = talk.say("y" * 110, answers=["Ok.<turn|>"])
    assert "By estimate the context is full: " in shown
    assert "Send all of it? The server says whether it is too long. [Y/n]" in shown
    assert "\nOk.\n" in shown
    assert "z" in talk.prompts[-1]


def test_a_full_context_offers_to_drop_the_oldest(talk: Conversing) -> None:
    long = "y" * 150
    talk.say(long, answers=["z" * 60 + "<turn|>"])
    talk.script.answers = [False, True]
    declined = talk.say(long)
    assert "The context is full: " in declined
    assert "Leave the oldest exchange out of what the model reads? The session keeps all. [Y/n]" in declined
    assert "Nothing was sent" in declined
    assert talk.given == long
    agreed = talk.say(long, answers=["Ok.<turn|>"])
    assert "\nOk.\n" in agreed
    assert "z" not in talk.prompts[-1]
    assert len(talk.talk.conversation.dropped) == 1
    (summary,) = talk.sessions.listing().sessions
    saved = talk.sessions.read(summary).conversation  # a conversation that is resumed leaves out the same
    assert (len(saved.dropped), len(saved.exchanges)) == (1, 1)
    assert talk.say("/context").endswith("The oldest exchange is left out of the prompt.\n")


@pytest.mark.parametrize("how", ["ask", "/edit ", "/regen", "/continue"])
def test_what_was_left_out_for_an_answer_that_never_came_is_read_again(talk: Conversing, how: str) -> None:
    talk.say("y" * 150, "And?", answers=["z" * 60 + "<turn|>", "Fine.{stop} and more<turn|>"])
    if how in ("/regen", "/continue"):
        talk.talk.conversation.set_system("s" * 140)
    before = talk.talk.conversation.history
    talk.script.answers = [True]
    shown = talk.say(
        {"ask": "x" * 150, "/edit ": "/edit " + "x" * 150}.get(how, how),
        answers=["<|channel>thought\nNever{stop} more"],
    )
    assert "Stopped before the answer began." in shown
    assert talk.talk.conversation.exchanges == before.exchanges
    assert talk.talk.conversation.dropped == ()
    saved = talk.sessions.read(talk.sessions.latest()).conversation
    assert [one.question for one in saved.exchanges] == ["y" * 150, "And?"]
    assert saved.dropped == ()


def test_keys_that_came_before_a_question_do_not_answer_it(talk: Conversing, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(talk.talk.keys, "take_in", lambda: asked.append("taken in"), raising=False)

    def agree(question: str) -> bool:
        asked.append(question)
        return False

    monkeypatch.setattr(talk.script, "agree", agree)
    talk.say("y" * 150, answers=["z" * 60 + "<turn|>"])
    talk.say("x" * 150)
    assert asked[0] == "taken in"
    assert len(asked) == 2


def test_other_words_that_do_not_fit_offer_the_same_and_replace_the_last_question(talk: Conversing) -> None:
    talk.say("y" * 150, "And?", answers=["z" * 60 + "<turn|>", "Ok.<turn|>"])
    talk.script.answers = [True]
    longer = "x" * 150  # instead of "And?"; with all that was said before it is too much
    shown = talk.say(f"/edit {longer}", answers=["Fine.<turn|>"])
    assert "Leave the oldest exchange out of what the model reads?" in shown
    assert "\nFine.\n" in shown
    assert "And?" not in talk.prompts[-1]
    assert [one.question for one in talk.talk.conversation.exchanges] == [longer]
    assert talk.say("/edit " + "x" * 400).startswith("> /edit xxx")
    assert talk.given == "x" * 400
    assert [one.question for one in talk.talk.conversation.exchanges] == [longer]


def test_ctrl_c_that_breaks_the_compiler_of_kernels_first_is_ctrl_c(
    talk: Conversing, monkeypatch: pytest.MonkeyPatch
) -> None:
    came_late = SimpleNamespace(sleep=lambda _: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(turns, "time", came_late)

    def broken(number: int) -> None:
        if number == 1:
            raise RuntimeError("the compiler has ended")

    talk.decoder.before_round = broken
    shown = talk.say("Hi", answers=["Hello there<turn|>"])
    assert "Error" not in shown
    (exchange,) = talk.talk.conversation.exchanges
    assert exchange.reply is not None
    assert exchange.reply.finish_reason == "cancelled"
    assert "Hello there".startswith(exchange.reply.text)
    talk.decoder.before_round = lambda _: None
    assert "\nOk.\n" in talk.say("More", answers=["Ok.<turn|>"])


def test_an_answer_that_fills_the_context_says_so_and_can_go_on_without_the_oldest(talk: Conversing) -> None:
    talk.say("y" * 100, answers=["z" * 60 + "<turn|>"])
    shown = talk.say("x" * 100, answers=["1" * 400])
    assert "tokens: the context is full. /continue offers to leave out the oldest, /clear starts anew.\n" in shown
    talk.script.answers = [False, True]
    assert "Leave the oldest exchange out of what the model reads?" in talk.say("/continue")
    begun = talk.talk.conversation.exchanges[-1].reply
    assert begun is not None
    talk.say("/continue", answers=["2<turn|>"])
    (left,) = talk.talk.conversation.exchanges
    assert left.reply is not None
    assert left.reply.text == begun.text + "2"
    assert "z" not in talk.prompts[-1]


def test_one_answer_that_fills_the_context_alone_can_only_be_left(talk: Conversing) -> None:
    shown = talk.say("x" * 100, answers=["1" * 400])
    assert "tokens: the context is full. /clear starts anew.\n" in shown
    assert "are kept for the answer. /clear starts anew.\n" in talk.say("/continue")


def test_an_answer_that_fills_what_memory_holds_of_the_context_says_so(tmp_path: Path) -> None:
    talk = Conversing(tmp_path, context=4000)
    talk.talk.model.fits_memory = 400
    talk.change(max_tokens=300)
    shown = talk.say("x" * 100, answers=["1" * 400])
    assert "The answer was cut after 300 tokens: the context is full. /clear starts anew.\n" in shown
    assert "are kept for the answer. /clear starts anew.\n" in talk.say("/continue")


def test_asking_again_after_a_longer_system_prompt_offers_to_drop_the_oldest(talk: Conversing) -> None:
    talk.say("y" * 60, "And?", answers=["z" * 60 + "<turn|>", "Ok.<turn|>"])
    talk.say("/system " + "s" * 200)
    talk.script.answers = [True]
    shown = talk.say("/regen", answers=["Fine.<turn|>"])
    assert "Leave the oldest exchange out of what the model reads?" in shown
    assert "\nFine.\n" in shown
    talk.say("/system " + "s" * 400)
    assert "The system prompt takes 400 of them: /system TEXT sets a shorter one.\n" in talk.say("/regen")
    assert talk.talk.conversation.exchanges[-1].reply is not None


def test_the_context_warns_once_before_it_is_full(tmp_path: Path) -> None:
    talk = Conversing(tmp_path, context=2000)
    shown = talk.say("w" * 1590, "And?", "And?", answers=["A<turn|>"] * 3)
    assert shown.count("The context is 80 % full: /context shows what fills it, /clear starts anew.\n") == 1
    assert shown.count(" % full") == 1
    assert "context 1.6k/2.0k" in shown.split("> And?")[-1]  # as full as before


def test_the_context_warns_again_once_it_was_emptier(talk: Conversing) -> None:
    lines = ["w" * 310, "/undo", "And?", "w" * 310]
    shown = talk.say(*lines, answers=["A<turn|>"] * 3)
    assert shown.count(" % full") == 2


def test_pasted_and_quoted_lines_are_text(talk: Conversing) -> None:
    talk.say(Line("/exit\nnow", pasted=True), '"""\n/exit\n"""', " /help", answers=["A<turn|>", "B<turn|>", "C<turn|>"])
    assert [one.question for one in talk.talk.conversation.exchanges] == ["/exit\nnow", "/exit", "/help"]


def test_a_path_is_text_and_an_unknown_command_is_not_sent(talk: Conversing) -> None:
    there = talk.folder / "there"
    there.mkdir()
    shown = talk.say(f"{there} is what?", "/hlep", "/frobnicate me", answers=["A folder<turn|>"])
    assert [one.question for one in talk.talk.conversation.exchanges] == [f"{there} is what?"]
    assert len(talk.decoder.requests) == 1
    assert "There is no command /hlep. Did you mean /help? A space before it sends it as text.\n" in shown
    assert "There is no command /frobnicate." in shown


def test_files_named_in_a_message_come_before_it(talk: Conversing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(talk.folder)
    Path("a.txt").write_text("Alpha\n", encoding="utf-8")
    shown = talk.say("Read @a.txt now", "me@home is no file", answers=["Ok<turn|>", "Right<turn|>"])
    assert shown.startswith("> Read @a.txt now\na.txt, 19 tokens\n\nOk\n")
    first, second = talk.talk.conversation.exchanges
    assert (first.question, first.mentioned) == ("Read @a.txt now", "--- a.txt ---\nAlpha")
    assert second.mentioned == ""


def test_a_model_is_read_before_anything_is_asked(talk: Conversing, monkeypatch: pytest.MonkeyPatch) -> None:
    target = talk.talk.model.target
    assert target is not None
    monkeypatch.setattr(Model, "load", lambda *_, **__: talk.model)
    worker = talk.talk.model.worker = Worker()
    talk.talk.load(target)
    worker.wait(seconds=60)
    assert worker.model is not None
    assert worker.model.model is talk.model


def test_a_model_that_cannot_be_read_is_an_error_and_the_question_stays(talk: Conversing) -> None:
    def read() -> object:
        raise OSError("no such disk")

    talk.worker.load(read)  # type: ignore[arg-type]
    shown = talk.say("Hi")
    assert "Error: Unexpected OSError: no such disk. This is a bug in mlxmtp; --debug shows where.\n" in shown
    assert talk.given == "Hi"


def test_debug_shows_where(talk: Conversing) -> None:
    talk.talk.change(debug=True)
    shown = talk.say("Hi")  # there is no answer in the queue
    assert "Traceback (most recent call last):" in shown
    assert "popleft" in shown
    assert "Error: Unexpected IndexError: pop from an empty deque." in shown
    assert talk.given == "Hi"


def test_everything_is_saved_as_it_is_said(talk: Conversing) -> None:
    talk.say("Hi", answers=["Hello.<turn|>"])
    (summary,) = talk.sessions.listing().sessions
    history = talk.sessions.read(summary).conversation
    assert [(one.question, one.reply and one.reply.text) for one in history.exchanges] == [("Hi", "Hello.")]


@pytest.mark.parametrize("removed", [False, True], ids=["full", "removed"])
def test_that_a_conversation_is_not_saved_any_more_is_said_once(
    talk: Conversing, monkeypatch: pytest.MonkeyPatch, removed: bool
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    assert "not saved" not in talk.say("Hi", answers=["Hello.<turn|>"])
    if removed:
        (file,) = talk.sessions.folder.iterdir()
        file.unlink()
    else:
        monkeypatch.setattr("mlxmtp.chat.journal._write_all", full)
    shown = talk.say("Two", "Three", answers=["2.<turn|>", "3.<turn|>"])
    reason = "its file was removed" if removed else "No space left on device"
    assert shown.count("This conversation is not saved any more") == 1
    assert f"Note: This conversation is not saved any more: {reason}" in shown.split("> Three")[0]
    assert "\n3.\n" in shown


@pytest.mark.parametrize("word", ["/clear", "/load"])
def test_what_could_not_be_saved_is_given_up_by_nobody_but_the_person(
    talk: Conversing, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    talk.say("Old?", "/clear", answers=["Yes.<turn|>"])
    line = "/clear" if word == "/clear" else f"/load {talk.sessions.latest().id}"
    permitted: list[str] = []

    def permits(_: Chat, question: str) -> bool:
        permitted.append(question)
        return False

    monkeypatch.setattr(Chat, "permits", permits)
    with monkeypatch.context() as patch:
        patch.setattr("mlxmtp.chat.journal._write_all", full)
        shown = talk.say("Hi", line, answers=["Hello.<turn|>"])
        assert shown.count("No space left on device") == 2
        assert shown.endswith("The conversation stays.\n")
        assert len(permitted) == 1
        assert [one.question for one in talk.talk.conversation.exchanges] == ["Hi"]
        kept = talk.talk.conversation.journal
        assert kept is not None
    talk.say(line)  # there is room again
    assert len(permitted) == 1
    saved = talk.sessions.read(talk.sessions.find(kept.id)).conversation
    assert [one.question for one in saved.exchanges] == ["Hi"]


def test_what_was_learned_is_kept_after_each_answer(talk: Conversing) -> None:
    """A conversation mostly ends with its window: nothing can wait for an orderly end."""
    talk.decoder.depth = DraftLength()
    places, drafter = talk.talk.loaded.places, Checkpoint("drafter", talk.folder / "model")
    learned = LearnedDrafting.of_pair(talk.model, drafter.folder, places.data)
    assert talk.talk.model.target is not None
    talk.worker.model = OpenModel(talk.model, talk.talk.model.target, drafter, learned)
    for _ in range(40):
        for k in (0, 2):
            talk.decoder.depth.observe(k, min(k, 1), 0.01 * (1 + 0.4 * k))
    talk.say("Hi", answers=["Hello.<turn|>"])
    assert len(list((places.data / "tuning").iterdir())) == 1


def test_a_model_that_is_refused_leaves_everything_as_it_was(talk: Conversing, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise TooLarge("It is too large.")

    monkeypatch.setattr("mlxmtp.app.open.require_memory", refuse)
    before = talk.talk.model.target, talk.worker.model
    assert talk.say("/model pocket") == "> /model pocket\nError: It is too large.\n"
    assert (talk.talk.model.target, talk.worker.model) == before
    assert talk.talk.model.opened.model is talk.model
