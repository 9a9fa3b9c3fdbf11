"""Every command of the conversation, as exact transcripts."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest

from mlxmtp.app.endpoints import Endpoint
from mlxmtp.app.open import OpenModel
from mlxmtp.app.remote_model import RemoteOpener
from mlxmtp.chat.conversation import Conversation
from mlxmtp.chat.history import Reply
from mlxmtp.chat.material import gather
from mlxmtp.chat.message import Message, TextPart, ToolCall, ToolResult
from mlxmtp.cli.repl.chat import Chat
from mlxmtp.cli.repl.slash import COMMANDS
from mlxmtp.cli.terminal.output import Look, Output
from mlxmtp.cli.terminal.presenters import AnswerView
from mlxmtp.engine.model import Model
from mlxmtp.errors import LoadError
from tests.cli.talking import Conversing, Paper
from tests.media_golden import pictures
from tests.text_checkpoint import write_text_checkpoint


@pytest.fixture
def talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Conversing:
    monkeypatch.chdir(tmp_path)
    return Conversing(tmp_path)


@pytest.fixture
def asked(talk: Conversing) -> Conversing:
    """One question has been answered."""
    talk.say("Hi", answers=["Hello.<turn|>"])
    return talk


def test_help_lists_every_command_and_explains_one(talk: Conversing) -> None:
    shown = talk.say("/help")
    assert all(f"\n{command.synopsis} " in shown and command.summary in shown for command in COMMANDS)
    assert max(map(len, shown.split("\n"))) <= 80
    assert talk.say("/help regen", "/help /bye", "/help cpoy") == (
        "> /help regen\n/regen\n  Answer the last question again. With another seed, unless /set seed has fixed it."
        " Also: /retry.\n"
        "> /help /bye\n/exit\n  Leave; the conversation is saved. Ctrl+D does the same. Also: /quit, /bye.\n"
        "> /help cpoy\nThere is no /cpoy. Did you mean /copy?\n"
    )


@pytest.mark.parametrize("word", ["/exit", "/quit", "/bye"])
def test_leaving(talk: Conversing, word: str) -> None:
    assert talk.say(word, "never read") == f"> {word}\n"


@pytest.mark.parametrize("word", ["/clear", "/new"])
def test_a_new_conversation_is_another_session(asked: Conversing, word: str) -> None:
    before = asked.talk.conversation.session
    assert asked.say(word, "Yo", answers=["Yo.<turn|>"]).startswith(f"> {word}\nA new conversation.\n> Yo\n\nYo.\n")
    assert "Hi" not in asked.prompts[1]
    assert asked.talk.conversation.session not in (None, before)
    assert len(asked.sessions.listing().sessions) == 2


def left(talk: Conversing, model: str, *said: tuple[str, Reply]) -> str:
    """The id of a session that was left some time ago."""
    conversation = Conversation(model=model, journal=talk.sessions.create(model))
    for question, reply in said:
        conversation.ask(question)
        conversation.part(reply.text, reply.thinking)
        conversation.finish(reply.finish_reason)
    session = conversation.session
    conversation.close()
    assert session is not None
    return session


@pytest.mark.parametrize("word", ["/clear", "/load"])
def test_another_conversation_begins_without_files_figures_and_a_thought(talk: Conversing, word: str) -> None:
    other = left(talk, "fake", ("Old?", Reply("Yes.")))
    Path("a.txt").write_text("Alpha", encoding="utf-8")
    talk.change(think=True)
    talk.say("Hi", "/file a.txt", answers=["<|channel>thought\nHm.<channel|>Yes.<turn|>"])
    assert talk.talk.last.thought.strip() == "Hm."
    shown = talk.say(f"{word} {other}" if word == "/load" else word, "/file", "/stats")
    assert "> /file\nNo file waits for the next message. /file PATH adds one.\n" in shown
    assert shown.endswith("> /stats\nThere are no figures yet: ask something first.\n")
    assert talk.talk.last.thought == ""  # which is what Ctrl+T shows
    talk.say("More", answers=["Ok.<turn|>"])
    assert "Alpha" not in talk.prompts[-1]


@pytest.mark.parametrize("word", ["/regen", "/retry"])
def test_answering_again(asked: Conversing, word: str) -> None:
    assert asked.say(word, answers=["Hey.<turn|>"]).startswith(f"> {word}\n\nHey.\n")
    assert asked.prompts[0] == asked.prompts[1]
    (exchange,) = asked.talk.conversation.exchanges
    assert exchange.reply is not None
    assert exchange.reply.text == "Hey."


@pytest.mark.parametrize("line", ["/regen", "/edit Hi again"])
def test_an_old_answer_with_calls_takes_no_room_in_another(talk: Conversing, line: str) -> None:
    conversation = talk.talk.conversation
    conversation.ask("Hi")
    conversation.finish("tool", calls=[ToolCall(id="c1", name="look")])
    conversation.add(Message("tool", (ToolResult("c1", "look", (TextPart("z" * 200),)),)))
    conversation.part("y" * 380)
    conversation.finish("stop")
    assert talk.say(line, answers=["Hey.<turn|>"]).startswith(f"> {line}\n\nHey.\n")


@pytest.mark.parametrize(("name", "back"), [("my notes", "'my notes'"), ("-v", None), ("plain", "plain")])
def test_the_way_back_is_a_line_for_a_shell(asked: Conversing, name: str, back: str | None) -> None:
    asked.talk.conversation.rename(name)
    start = len(asked.paper.getvalue())
    asked.talk.say_goodbye()
    shown = asked.paper.getvalue()[start:]
    assert shown == f"To come back: mlxmtp chat -r {back or asked.talk.conversation.session}\n"


def test_answering_again_without_an_answer_keeps_the_old_one(asked: Conversing) -> None:
    asked.change(think=True)
    assert "Stopped before the answer began." in asked.say("/regen", answers=["<|channel>hm{stop} hm hm hm hm"])
    (exchange,) = asked.talk.conversation.exchanges
    assert exchange.reply is not None
    assert exchange.reply.text == "Hello."
    assert asked.given == ""


def test_taking_back(asked: Conversing) -> None:
    asked.say("Two", "Three", answers=["2<turn|>", "3<turn|>"])
    assert asked.say("/undo") == "> /undo\nTaken back: Three\n"
    assert asked.say("/undo 7") == "> /undo 7\nTaken back: Hi\nTaken back: Two\n"
    assert asked.say("/undo") == "> /undo\nError: Nothing has been asked yet, so there is nothing to take back.\n"
    assert asked.say("/undo x") == "> /undo x\nError: /undo takes how many exchanges to take back, 1 or more.\n"


def test_editing_at_once(asked: Conversing) -> None:
    assert asked.say("/edit Ho", answers=["Ho!<turn|>"]).startswith("> /edit Ho\n\nHo!\n")
    assert [one.question for one in asked.talk.conversation.exchanges] == ["Ho"]


def test_editing_in_the_line(asked: Conversing) -> None:
    shown = asked.say("/edit", "Hi there", answers=["Hey.<turn|>"])
    assert "The last question; Enter asks it again, Ctrl+C leaves it as it was.\n> Hi there\n\nHey.\n" in shown
    assert asked.script.given[-2] == "Hi"
    assert [one.question for one in asked.talk.conversation.exchanges] == ["Hi there"]


def test_an_empty_line_ends_editing(asked: Conversing) -> None:
    assert "The question stays as it was.\n" in asked.say("/edit", "", "More", answers=["Ok.<turn|>"])
    assert [one.question for one in asked.talk.conversation.exchanges] == ["Hi", "More"]


@pytest.mark.parametrize("left", [KeyboardInterrupt, "/nonsense"])
def test_editing_that_was_left_touches_nothing_that_was_said(asked: Conversing, left: str | type) -> None:
    shown = asked.say("/edit", left, "More", answers=["Ok.<turn|>"])
    assert ("The question stays as it was.\n" in shown) == (left is KeyboardInterrupt)
    assert [one.question for one in asked.talk.conversation.exchanges] == ["Hi", "More"]


def test_a_long_question_is_shown_by_its_beginning_when_its_conversation_goes_on(asked: Conversing) -> None:
    asked.say("\n".join("abcdefghijklmnopqrst"), answers=["Ok.<turn|>"])
    asked.say("/save long", "/clear")
    shown = asked.say("/load long")
    assert "> l\n… 8 more lines\n" in shown
    assert "> m" not in shown


@pytest.mark.parametrize("line", ["/clear foo", "/regen please", "/exit\nWhat is a drafter?", "/context all"])
def test_a_command_that_takes_nothing_does_nothing_with_more(asked: Conversing, line: str) -> None:
    before = asked.talk.conversation.history
    shown = asked.say(line)
    assert shown.endswith(f"Error: {line.split(maxsplit=1)[0]} takes nothing after it, so nothing was done.\n")
    assert asked.talk.conversation.history == before


def test_going_on_right_behind_the_opening_of_a_block(talk: Conversing) -> None:
    talk.change(max_tokens=7)
    talk.say("Hi", answers=["```bash"])
    reply = talk.talk.conversation.exchanges[-1].reply
    assert reply is not None
    assert reply.text == "```bash"
    talk.change(max_tokens=None)
    assert "```bash\nls\n```\n" in talk.say("/continue", answers=["\nls\n```\n<turn|>"])


def test_going_on(talk: Conversing) -> None:
    talk.change(max_tokens=4)
    talk.say("Hi", answers=["One ab"])
    talk.change(max_tokens=None)
    assert talk.say("/continue", answers=["three.<turn|>"]).startswith("> /continue\n\nthree.\n")
    (exchange,) = talk.talk.conversation.exchanges
    assert exchange.reply is not None
    assert exchange.reply.text == "One three."
    assert exchange.reply.finish_reason == "stop"
    assert talk.prompts[1].endswith("<|turn>user\nHi<turn|>\n<|turn>model\nOne ")
    assert talk.say("/continue").endswith("Error: The last answer is complete: there is nothing to go on with.\n")


def test_going_on_is_for_answers_that_are_not_complete(asked: Conversing) -> None:
    assert asked.say("/continue").endswith("Error: The last answer is complete: there is nothing to go on with.\n")


@pytest.fixture
def no_clipboard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only that of the terminal: neither tmux nor a Mac has one that is somebody's."""
    monkeypatch.delenv("TMUX", raising=False)
    monkeypatch.setattr("sys.platform", "linux")


@pytest.mark.usefixtures("no_clipboard")
def test_copying(talk: Conversing) -> None:
    assert talk.say("/copy") == "> /copy\nError: There is no answer yet to copy.\n"
    talk.talk.out.look = type(talk.talk.out.look)(dumb=False, color=False)
    talk.say("Hi", answers=["One\n```sh\nls\n```\nand\n```\ndf\n```\n<turn|>"])
    for word, text in (
        ("/copy code", "df\n"),
        ("/copy 1", "ls\n"),
        ("/copy", "One\n```sh\nls\n```\nand\n```\ndf\n```\n"),
    ):
        shown = talk.say(word)
        assert f"\x1b]52;c;{base64.b64encode(text.encode()).decode()}\x07" in shown
        assert f"Copied {len(text)} characters, if this terminal allows it." in shown
    assert "\x1b]52;c;" in talk.say("/copy all")
    assert "The last answer has 2 code blocks." in talk.say("/copy 3")
    assert "/copy takes nothing, all, code, or the number of a code block." in talk.say("/copy that")


@pytest.mark.usefixtures("no_clipboard")
def test_a_terminal_without_escapes_has_no_clipboard(asked: Conversing) -> None:
    assert asked.say("/copy") == "> /copy\nThis terminal has no way to the clipboard: /export writes a file instead.\n"


def test_files_wait_for_the_next_message(talk: Conversing) -> None:
    Path("my notes.txt").write_text("Alpha", encoding="utf-8")
    Path("b.txt").write_text("Beta", encoding="utf-8")
    assert talk.say("/file") == "> /file\nNo file waits for the next message. /file PATH adds one.\n"
    assert talk.say('/file "my notes.txt" b.txt') == (
        '> /file "my notes.txt" b.txt\n'
        "my notes.txt, 26 tokens, goes with the next message\nb.txt, 18 tokens, goes with the next message\n"
    )
    assert talk.say("/file").endswith("b.txt, 18 tokens, goes with the next message\n")
    talk.say("What?", "Again?", answers=["So.<turn|>", "So.<turn|>"])
    assert [one.attached for one in talk.talk.conversation.exchanges] == [
        "--- my notes.txt ---\nAlpha\n\n--- b.txt ---\nBeta", ""
    ]  # fmt: skip
    assert talk.say("/file b.txt", "/file clear", "/file").endswith(
        "No file waits for the next message. /file PATH adds one.\n"
    )
    assert talk.say("/file nothing.txt") == "> /file nothing.txt\nError: There is no file nothing.txt.\n"
    assert talk.say('/file "b.txt').endswith("a quotation mark is missing.\n")


def test_a_picture_that_the_model_cannot_see_does_not_wait(talk: Conversing) -> None:
    for name in ("a.png", "b.png"):
        pictures()[0].save(name)
    assert "has no vision tower, so it cannot see a.png" in talk.say("/file a.png b.png")
    assert talk.say("/file").endswith("No file waits for the next message. /file PATH adds one.\n")
    talk.talk.line.files = [gather("a.png")]  # before this model
    assert talk.say("Hi").endswith("without --text-only. /file clear drops the files that wait.\n")


def test_files_that_wait_are_named_also_where_the_model_cannot_be_read(talk: Conversing) -> None:
    def read() -> OpenModel:
        raise LoadError("The model is damaged.")

    talk.worker.load(read)
    Path("b.txt").write_text("Beta", encoding="utf-8")
    shown = talk.say("/file b.txt")
    assert "b.txt, goes with the next message\n" in shown
    assert "Error: The model is damaged.\n" in shown


def test_files_go_on_waiting_when_the_question_got_no_answer(talk: Conversing) -> None:
    Path("a.txt").write_text("Alpha", encoding="utf-8")
    talk.change(think=True)
    shown = talk.say("/file a.txt", "What?", "/file", answers=["<|channel>hm{stop} hm hm hm hm"])
    assert "Stopped before the answer began." in shown
    assert shown.endswith("> /file\na.txt, 19 tokens, goes with the next message\n")
    talk.say("What?", answers=["So.<turn|>"])
    assert [one.attached for one in talk.talk.conversation.exchanges] == ["--- a.txt ---\nAlpha"]


def test_the_system_prompt(talk: Conversing) -> None:
    assert talk.say("/system") == "> /system\nThere is no system prompt. /system TEXT sets one.\n"
    assert talk.say("/system Be brief.", "/system") == (
        "> /system Be brief.\nThe system prompt is set.\n> /system\nBe brief.\n"
    )
    talk.say("Hi", answers=["Hm.<turn|>"])
    assert talk.prompts[0].startswith("<bos><|turn>system\nBe brief.<turn|>\n")
    Path("s.txt").write_text("From a file.", encoding="utf-8")
    assert talk.say("/system @s.txt", "/system").endswith("From a file.\n")
    Path("my s.txt").write_text("From another.", encoding="utf-8")
    assert talk.say('/system @"my s.txt"', "/system").endswith("From another.\n")
    assert talk.say("/system -").endswith("There is no system prompt any more.\n")


def test_the_model(talk: Conversing) -> None:
    assert talk.say("/model") == f"> /model\nfake, without a drafter, in {talk.folder / 'model'}\n"
    shown = talk.say("/model e5b")
    assert "Error: Model 'e5b' is not known (did you mean 'e4b'?)" in shown
    assert talk.say("Hi", answers=["Still here.<turn|>"]).startswith("> Hi\n\nStill here.\n")


def test_a_server_named_later_answers_in_place_of_the_one_before(
    talk: Conversing, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat, asked = talk.talk, list[Endpoint]()
    monkeypatch.setenv("MLXMTP_API_KEY", "sk-own")
    monkeypatch.setattr(RemoteOpener, "target", lambda opener, _: asked.append(opener.endpoint))
    monkeypatch.setattr(Chat, "load", lambda *_: None)
    monkeypatch.setattr("mlxmtp.app.endpoints.is_loopback", lambda _: False)
    endpoints = {"team": {"url": "http://team.example"}}
    chat.loaded = replace(chat.loaded, endpoints=endpoints, origins={"url": "flag"})
    chat.change(url="http://first.example")
    talk.say("/model large", "/model team", "/model http://third.example")
    assert [(one.url, one.model) for one in asked] == [
        ("http://first.example", "large"), ("http://team.example", None), ("http://third.example", None),
    ]  # fmt: skip
    assert not any(one.remote(5).keyed for one in asked)


def test_a_drafter_that_was_named_stays_with_the_model_before(
    talk: Conversing, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafters: list[Path | None] = []

    def load(_: Path, drafter: Path | None, **__: object) -> Model:
        drafters.append(drafter)
        return talk.model

    monkeypatch.setattr(Model, "load", load)
    talk.change(draft_model=str(write_text_checkpoint(talk.folder / "named")))
    other = write_text_checkpoint(talk.folder / "other")
    shown = talk.say(f"/model {other}", "Hi", "/model", answers=["Hm.<turn|>"])
    assert f"{other} answers from here on.\n" in shown
    assert f"> /model\n{other}, without a drafter, in {other}\n" in shown
    assert drafters == [None]


def test_settings(talk: Conversing) -> None:
    assert talk.say("/set temp 0.5", "/set top-p", "/set seed 7", "/set") == (
        "> /set temp 0.5\ntemp is 0.5.\n> /set top-p\ntop-p is the model's own.\n> /set seed 7\nseed is 7.\n> /set\n"
        "temp          0.5\ntop-p         the model's own\ntop-k         the model's own\n"
        "min-p         the model's own\nseed          7\nmax-tokens    the model's own\nthink-tokens  no limit\n"
        "image-tokens  the model's own\n"
    )
    talk.say("Hi", answers=["Hm.<turn|>"])
    assert (talk.decoder.requests[0].sampling.temp, talk.decoder.requests[0].sampling.seed) == (0.5, 7)
    assert talk.say("/set temp default").endswith("temp is the model's own.\n")
    assert talk.say("/set temp hot").endswith("Error: temp must be a number from 0 up, not 'hot'.\n")
    assert talk.say("/set max_tokens 0").endswith("Error: max-tokens must be a whole number from 1 up, not 0.\n")
    assert talk.say("/set tmep 1").endswith("Error: There is no setting tmep. Did you mean temp?\n")


def test_thinking(talk: Conversing) -> None:
    assert talk.say("/think", "/think on", "/think hide", "/think show", "/think off") == (
        "> /think\nThinking is off.\n> /think on\nThinking is on and shown while it lasts.\n"
        "> /think hide\nThinking is on and hidden.\n> /think show\nThinking is on and shown while it lasts.\n"
        "> /think off\nThinking is off.\n"
    )
    assert talk.say("/think hard").endswith("Error: /think takes on, off, show or hide.\n")
    shown = talk.say("/think on", "/think hide", "Hi", answers=["<|channel>thought\nSecret.<channel|>Yes.<turn|>"])
    assert "> Hi\n\nthought for 0.0 s\n\nYes.\n" in shown


def test_a_thought_has_a_budget(talk: Conversing) -> None:
    shown = talk.say(
        "/think on", "/set think-tokens 6", "Hi", answers=["<|channel>thought\nLong and longer", "So: yes.<turn|>"]
    )
    assert "think-tokens is 6.\n> Hi\n\n" in shown
    assert "\n\nthought for 0.0 s\n\nSo: yes.\n" in shown


def test_drafting(talk: Conversing) -> None:
    assert talk.say("/draft", "/draft off") == (
        "> /draft\nDrafting is off: no drafter is loaded.\n> /draft off\nDrafting is off: no drafter is loaded.\n"
    )
    assert talk.say("/draft on").endswith(
        "There is no drafter for 'fake' here. Leave, and name one: mlxmtp chat -c --draft-model NAME\n"
    )
    talk.talk.model.drafter = talk.talk.model.target
    assert talk.say("/draft 3", "/draft 1", "/draft auto", "/draft off", "/draft") == (
        "> /draft 3\nDrafting 3 tokens per round.\n> /draft 1\nDrafting 1 token per round.\n"
        "> /draft auto\nThe draft length adapts to acceptance and measured speed.\n"
        "> /draft off\nDrafting is off.\n> /draft\nDrafting is off.\n"
    )
    talk.say("/draft 2", "Hi", answers=["Hm.<turn|>"])
    assert talk.decoder.requests[0].draft == 2
    assert "num-draft-tokens must be a whole number from 0 to 8, or auto, not 9." in talk.say("/draft 9")
    assert talk.say("/draft auto", "/draft mtp,copy").endswith(
        "measured speed. Drafts are copied from the text, too, where it repeats itself.\n"
    )
    talk.say("Hi", answers=["Hm.<turn|>"])
    assert talk.decoder.requests[-1].draft_from == ["mtp", "copy"]
    assert "draft-from must be mtp, copy or mtp,copy, not 'copying'." in talk.say("/draft copying")


def test_more_drafts_than_exact_text_has_are_refused(talk: Conversing) -> None:
    talk.talk.model.drafter = talk.talk.model.target
    talk.change(exact="on")
    assert "at most 4 drafts a round, not 8: leave one of the two" in talk.say("/draft 8")
    assert "Exact text takes no copied drafts" in talk.say("/draft mtp,copy")
    assert (talk.talk.settings.num_draft_tokens, talk.talk.settings.draft_from) == (None, None)
    assert "Drafting 4 tokens per round." in talk.say("/draft 4")


def test_figures(talk: Conversing) -> None:
    assert talk.say("/stats") == "> /stats\nThere are no figures yet: ask something first.\n"
    assert " · context " in talk.say("Hi", answers=["Hello.<turn|>"])
    shown = talk.say("/stats")
    assert "prompt       18 tokens, 0 of them reused\n" in shown
    assert "drafts       4 of 6 accepted, 67 % (100 100 0 by position)\n" in shown
    assert shown.endswith("seed         1\n")
    assert talk.say("/stats off", "Hi", answers=["Hello.<turn|>"]) == (
        "> /stats off\nA line of figures no longer follows answers.\n> Hi\n\nHello.\n\n"
    )
    assert talk.say("/stats on").endswith("A line of figures follows each answer.\n")
    assert talk.say("/stats all").endswith("Error: /stats takes on or off, or nothing.\n")


def test_what_fills_the_context(asked: Conversing) -> None:
    asked.say("/system Be brief.")
    assert asked.say("/context") == (
        "> /context\n"
        "system prompt               9 tokens\n"
        "1 exchange                  8 tokens\n"
        "format                     43 tokens\n"
        "kept for the answer        50 tokens\n"
        "free                      290 tokens\n"
        "context                   400 tokens\n"
    )


def test_files_that_wait_have_a_row_of_their_own_in_what_fills_the_context(asked: Conversing) -> None:
    Path("a.txt").write_text("Alpha", encoding="utf-8")
    before = asked.say("/context")
    assert "files that wait" not in before
    assert "free                      309 tokens\n" in before
    shown = asked.say("/file a.txt", "/context")
    assert "files that wait            19 tokens\n" in shown
    assert "free                      290 tokens\n" in shown


def test_naming_and_loading_sessions(asked: Conversing) -> None:
    first = asked.talk.conversation.session
    assert asked.say("/save") == f"> /save\nSaved as session {first}. /save NAME gives it a name.\n"
    assert asked.say("/save greetings") == "> /save greetings\nSaved as greetings.\n"
    asked.say("/clear")
    nothing = "There is nothing to save yet; from the next question on everything is saved"
    assert asked.say("/save").endswith(f"{nothing}.\n")
    assert asked.say("/save later").endswith(f"{nothing} as later.\n")
    asked.say("Other", answers=["Thing.<turn|>"])
    assert "greetings" in asked.say("/sessions")
    assert asked.say("/load greetings") == ("> /load greetings\nGoing on with: Hi (1 exchange)\n\n> Hi\n\nHello.\n\n")
    assert asked.talk.conversation.session == first
    assert asked.say("/load greetings").endswith("That is this session.\n")
    assert asked.say("/load").endswith("Error: /load takes a name or an id; /sessions lists them.\n")
    assert asked.say("/load xyz").endswith("Error: There is no session 'xyz'. /sessions lists them.\n")
    asked.say("More?", answers=["Yes.<turn|>"])
    assert "Hello.<turn|>\n<|turn>user\nMore?" in asked.prompts[-1]


def test_a_session_that_is_loaded_goes_on_with_the_model_of_now(talk: Conversing) -> None:
    session = left(talk, "before", ("Old?", Reply("Yes.")))
    talk.say(f"/load {session}", "More", answers=["Ok.<turn|>"])
    (summary,) = talk.sessions.listing().sessions
    assert (summary.id, summary.model) == (session, "fake")


def test_a_session_is_loaded_without_the_thoughts(talk: Conversing) -> None:
    session = left(talk, "fake", ("Old?", Reply("Yes.", "Let me see.")))
    assert talk.say(f"/load {session}").endswith("> Old?\n\nYes.\n\n")


def test_plain_shows_a_session_that_is_loaded_as_it_was_written(talk: Conversing) -> None:
    session = left(talk, "fake", ("Old?", Reply("Some **x**.")))
    talk.talk.out.look = Look(color=False)
    talk.change(plain=True)
    assert "\nSome **x**.\n" in talk.say(f"/load {session}")


def test_no_sessions_yet(talk: Conversing) -> None:
    assert talk.say("/sessions") == "> /sessions\nThere are no saved conversations yet.\n"


def test_exporting(asked: Conversing) -> None:
    assert asked.say("/export out.md", "/export out.json") == (
        "> /export out.md\nWritten to out.md.\n> /export out.json\nWritten to out.json.\n"
    )
    assert "Hello." in Path("out.md").read_text(encoding="utf-8")
    assert "Hello." in json.dumps(json.loads(Path("out.json").read_text(encoding="utf-8")))
    assert asked.say("/export out.md").endswith("Error: out.md exists already: take another name.\n")
    assert asked.say("/export").endswith("Error: /export takes the name of a file that ends in .md or .json.\n")
    assert "must end in .md or .json" in asked.say("/export out.txt")


def test_a_quotation_mark_is_missing(asked: Conversing) -> None:
    assert asked.say('/export "my talk.md', "/help exit").startswith(
        '> /export "my talk.md\nError: /export "my talk.md: a quotation mark is missing.\n> /help exit\n/exit\n'
    )


def test_a_folder_that_cannot_be_read_does_not_end_the_conversation(
    asked: Conversing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(_: object) -> None:
        raise PermissionError(13, "Permission denied", "/home/sessions")

    monkeypatch.setattr("mlxmtp.chat.sessions.Sessions.listing", locked)
    shown = asked.say("/sessions", "More", answers=["Ok.<turn|>"])
    assert "Error: /home/sessions: Permission denied. Check the file, its folder and the disk.\n" in shown
    assert "\nOk.\n" in shown


def test_a_file_named_in_other_words_for_the_question_is_read(asked: Conversing) -> None:
    Path("a.txt").write_text("Alpha\n", encoding="utf-8")
    shown = asked.say("/edit Read @a.txt", answers=["Ok.<turn|>"])
    assert shown.startswith("> /edit Read @a.txt\na.txt, 19 tokens\n\nOk.\n")
    (exchange,) = asked.talk.conversation.exchanges
    assert exchange.content == "--- a.txt ---\nAlpha\n\nRead @a.txt"
    (summary,) = asked.sessions.listing().sessions
    assert asked.sessions.read(summary).conversation.exchanges[0].content == exchange.content
    asked.say("/edit Again @a.txt", answers=["Ok.<turn|>"])
    assert asked.talk.conversation.exchanges[0].content == "--- a.txt ---\nAlpha\n\nAgain @a.txt"


def test_a_file_that_other_words_name_no_more_goes_and_one_that_was_attached_stays(asked: Conversing) -> None:
    for name in ("a.txt", "b.txt", "c.txt"):
        Path(name).write_text(f"Text of {name}\n", encoding="utf-8")
    asked.say("/file c.txt", "Read @a.txt", "/edit Read @b.txt", answers=["Ok.<turn|>", "Ok.<turn|>"])
    assert asked.talk.conversation.exchanges[-1].content == (
        "--- c.txt ---\nText of c.txt\n\n--- b.txt ---\nText of b.txt\n\nRead @b.txt"
    )
    asked.say("/edit Read nothing but @c.txt", answers=["Ok.<turn|>"])  # which is there once
    (summary,) = asked.sessions.listing().sessions
    assert asked.sessions.read(summary).conversation.exchanges[-1].content == (
        "--- c.txt ---\nText of c.txt\n\nRead nothing but @c.txt"
    )


def test_a_file_named_in_other_words_goes_when_nothing_is_said(asked: Conversing) -> None:
    Path("a.txt").write_text("Alpha\n", encoding="utf-8")
    before = asked.talk.conversation.exchanges
    asked.change(think=True)
    asked.say("/edit Read @a.txt", answers=["<|channel>hm{stop} hm hm hm hm"])
    assert asked.talk.conversation.exchanges == before


def test_other_words_that_could_not_be_sent_are_still_other_words(asked: Conversing) -> None:
    Path("b.bin").write_bytes(b"\0")
    shown = asked.say("/edit", "Read @b.bin", "Hi there", answers=["Hey.<turn|>"])
    assert "b.bin holds NUL bytes" in shown
    assert asked.script.given[-2] == "Read @b.bin"
    assert [one.question for one in asked.talk.conversation.exchanges] == ["Hi there"]


@pytest.mark.parametrize("line", ["/save", "/save talk"])
def test_what_is_not_saved_any_more_is_not_said_to_be(
    asked: Conversing, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlxmtp.chat.journal._write_all", full)
    if line == "/save":  # else it is the name that cannot be written
        asked.say("More", answers=["Ok.<turn|>"])
    assert asked.say(line).startswith(f"> {line}\nError: This conversation is not saved any more: No space left")


@pytest.mark.parametrize("line", ["/save", "/save talk"])
def test_a_session_whose_file_was_removed_is_not_said_to_be_saved(asked: Conversing, line: str) -> None:
    (file,) = asked.sessions.folder.iterdir()
    file.unlink()
    assert asked.say(line).startswith(f"> {line}\nError: This conversation is not saved any more: its file was removed")


def test_a_session_of_another_version_is_named_with_the_list(asked: Conversing) -> None:
    (asked.sessions.folder / "newer.jsonl").write_text('{"type": "session", "format": 3}\n', encoding="utf-8")
    shown = asked.say("/sessions")
    assert "Note: newer.jsonl was written by another version of mlxmtp" in shown
    assert "/load ID goes on with one." in shown


def test_without_saving_another_session_is_only_read(asked: Conversing) -> None:
    session = asked.talk.conversation.session
    before = (asked.sessions.folder / f"{session}.jsonl").read_bytes()
    asked.talk.conversation.close()
    asked.talk.conversation = Conversation()  # as --no-save makes it
    assert "Going on with: Hi (1 exchange)" in asked.say(f"/load {session}")
    assert "\nOk.\n" in asked.say("More", "/save", answers=["Ok.<turn|>"])
    assert [one.question for one in asked.talk.conversation.exchanges] == ["Hi", "More"]
    assert [path.read_bytes() for path in asked.sessions.folder.iterdir()] == [before]


def test_answers_of_a_schema(talk: Conversing) -> None:
    assert "Answers are free." in talk.say("/schema")
    assert 'Answers are JSON of {"type": "object"' in talk.say("/schema name, age int")
    talk.say("Who?", answers=["{}"])
    assert "cannot be used" in talk.say('/schema {"not": {}}')
    talk.say("Who?", answers=["{}"])
    assert "Answers are free." in talk.say("/schema off")
    talk.say("Who?", answers=["{}"])
    assert [request.constraint is not None for request in talk.decoder.requests] == [True, True, False]


def test_what_was_taken_back_can_come_back(asked: Conversing) -> None:
    asked.say("Two", "Three", answers=["2<turn|>", "3<turn|>"])
    before = asked.talk.conversation.exchanges
    asked.say("/undo", "/undo 2")
    assert asked.talk.conversation.exchanges == ()
    assert asked.say("/redo") == "> /redo\nBack again: Hi\nBack again: Two\n"
    assert asked.say("/redo") == "> /redo\nBack again: Three\n"
    assert asked.talk.conversation.exchanges == before
    stored = asked.sessions.read(asked.sessions.latest(print)).conversation.exchanges
    assert [(one.question, one.reply and one.reply.text) for one in stored] == [
        ("Hi", "Hello."), ("Two", "2"), ("Three", "3")
    ]  # fmt: skip
    assert asked.say("/redo").endswith("Error: Nothing was taken back that could come back: /undo does that.\n")
    asked.say("/undo", "Four", answers=["4<turn|>"])
    assert "Nothing was taken back" in asked.say("/redo")


def test_a_plain_conversation_repaints_nothing(tmp_path: Path) -> None:
    """What is done is said once, when it begins."""
    paper = Paper()
    out = Output(None, paper, Look(still=True))
    for text in ("loading e2b", "loading e2b, 1 s", "reading the prompt, 1 of 9 tokens", "reading the prompt, 5 of 9"):
        out.progress(text)
    out.clear_progress()
    assert paper.getvalue() == "loading e2b\nreading the prompt\n"
    screen = Paper()
    view = AnswerView(Output(screen, None, Look(still=True)), plain=True, clock=lambda: 1.0)
    view.thinking("Let me ")
    view.tick()
    view.thinking("see.")
    view.text("An *answer*.")
    view.end()
    assert screen.getvalue() == "Let me see.\n\nthought for 0.0 s\n\nAn *answer*.\n"
