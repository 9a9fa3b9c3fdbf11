"""The router at work: who answers when models here, endpoints and permissions are as they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlxmtp.app import candidates
from mlxmtp.app.breaker import FAILURES
from mlxmtp.app.map import summarise
from mlxmtp.app.open import Asked, Checkpoint, LearnedDrafting, Opener, OpenModel
from mlxmtp.app.routed_model import RoutedModel, RoutedOpenModel, RouterOpener
from mlxmtp.app.router import reason
from mlxmtp.app.tools.approval import Approvals
from mlxmtp.app.tools.builtin import builtin
from mlxmtp.app.tools.calls import CallRunner
from mlxmtp.app.tools.toolbox import Toolbox
from mlxmtp.app.turn import Outcome, Turn
from mlxmtp.chat.conversation import Conversation
from mlxmtp.chat.history import Exchange
from mlxmtp.cli import app
from mlxmtp.engine.events import End
from mlxmtp.engine.media import Media, Medium
from mlxmtp.engine.model import Model
from mlxmtp.engine.params import Params
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.errors import ContextOverflow, EndpointFailed, MlxmtpError, TooLarge
from mlxmtp.media.source import MediaFile
from mlxmtp.models.config import read_config
from mlxmtp.settings import load_settings
from tests.app.faulty import ANSWER, STREAM, Step, http, peer, refused, said
from tests.cli.talking import Conversing
from tests.fake_decoder import FakeDecoder, fake_logprob
from tests.serve.running import TEMPLATE, call
from tests.text_checkpoint import write_text_checkpoint

SKILLS = """
[[skill]]
name = "hard"
pattern = "hard"
model = "big"

[[skill]]
name = "far"
pattern = "far"
model = "team"
"""
GONE = http(b"", "503 Busy")


class House:
    """Two models here that say what is queued, and an endpoint `team`."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLXMTP_HOME", str(folder))
        self.folder, self.now, self.asked = folder, 0.0, list[str]()
        self.decoders = {name: FakeDecoder() for name in ("small", "big")}
        self.folders = {
            name: write_text_checkpoint(folder / name, context=context)
            for name, context in (("small", 400), ("big", 800))
        }
        self.tokenizer = Tokenizer.load(self.folders["small"])
        self.answer_to: Callable[[str], bool] | None = None
        self.usable = 10**12
        monkeypatch.setattr(Opener, "open", self._open)
        monkeypatch.setattr(Opener, "require_memory", self._require_memory)
        monkeypatch.setattr(candidates.Candidate, "bytes", property(lambda one: 10 if one.opener.here else 0))
        monkeypatch.setattr(Opener, "machine", self)

    def _open(self, target: Checkpoint, drafter: object, settings: object, tokenizer: object = None) -> OpenModel:
        name = target.folder.name
        self.asked.append(f"open {name}")
        model = Model(self.decoders[name], read_config(target.folder), self.tokenizer, name=name)
        model.close = lambda: self.asked.append(f"close {name}")  # type: ignore[method-assign]
        return OpenModel(model, target, None, LearnedDrafting(self.folder / "data", None))

    def _require_memory(self, target: Checkpoint, *_: object, **__: object) -> None:
        if target.folder.name == "big" and self.usable < 10:
            raise TooLarge("no")

    def say(self, name: str, *answers: str) -> None:
        for answer in answers:
            self.decoders[name].enqueue(self.tokenizer.encode(f"{answer}<turn|>"))

    def open(self, router: str = 'remote = "fallback"', skills: str = SKILLS, url: str = "127.0.0.1:1") -> None:
        config = f'[endpoint.team]\nurl = "{url}"\ntimeout = 60\n[router]\nsmall = "{self.folders["small"]}"\n'
        if "big =" not in router:
            config += f'big = "{self.folders["big"]}"\n'
        (self.folder / "config.toml").write_text(f"{config}{router}\n{skills}", encoding="utf-8")
        opener = RouterOpener(load_settings({}), lambda _: None, agree=self.answer_to, clock=lambda: self.now)
        found = opener.open(opener.target("auto"), None, opener.loaded.settings)
        assert isinstance(found, RoutedOpenModel)
        self.opened, self.conversation = found, Conversation()

    def turn(
        self, question: str, *, params: Params | None = None, attached: str = "", tools: Toolbox | None = None
    ) -> Outcome:
        turn, box = Turn(self.conversation, "ask", Exchange(question, attached=attached)), tools or Toolbox()
        self.doing = turn.begin(self.opened, params or Params(), tools=box.declarations)
        runner = CallRunner(box, Approvals(self.folder / "approvals.json"))
        while (outcome := turn.run(turn.stream(params or Params()), lambda _: True)) is None:
            turn.carry_out(runner)
        assert outcome is not None
        return outcome

    def route(self, question: str, **more: Any) -> str:
        """The reason that is shown for who answered."""
        outcome = self.turn(question, **more)
        assert outcome.stats is not None
        said, texts = self.conversation.exchanges[-1].reply, {"small": "Small.", "big": "Big."}
        assert said is not None
        assert said.stats is not None
        who = outcome.stats.route.partition(":")[0].rpartition("/")[2]
        assert outcome.text == texts.get(who, "From afar.")
        had_it = who == "team" or ("team failed" in outcome.stats.route and "refused" not in outcome.stats.route)
        assert (outcome.stats.sent_to != "") == had_it  # also where it got no answer
        return outcome.stats.route.replace(f"{self.folder}/", "")


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    return House(tmp_path, monkeypatch)


def test_skills_choose_and_a_conversation_stays(house: House) -> None:
    house.say("small", "Small.", "Small.")
    house.say("big", "Big.", "Big.")
    house.open()
    assert [house.route(one) for one in ("Hi", "A hard one", "Hi")] == [
        "small: no skill",
        "big: hard",
        "big: as before",
    ]
    house.conversation = Conversation()
    assert house.route("Hi") == "small: no skill"  # another one begins anew
    assert house.asked == ["open small", "open big"]


def test_a_conversation_stays_with_the_model_that_its_answers_name(house: House) -> None:
    house.say("small", "Small.", "Small.")
    house.say("big", "Big.", "Big.", "Big.")
    house.open()
    for question in ("Hi", "A hard one"):
        house.route(question)
    events = [{"type": "message", **one.to_dict()} for one in house.conversation.history.messages]
    house.open()  # as another process does
    house.conversation = Conversation.restore(events)
    assert house.route("Hi") == "big: as before"
    house.conversation.undo(2)
    assert house.route("Hi") == "small: no skill"  # the answer before is the small one's
    reply = house.conversation.exchanges[-1].reply
    assert reply is not None
    assert reply.stats is not None
    assert reply.stats["answered_by"] == str(house.folders["small"]) == house.conversation.exchanges[-1].model


def test_two_that_do_not_fit_take_turns(house: House) -> None:
    house.say("small", "Small.", "Small.")
    house.say("big", "Big.")
    house.usable = 15
    house.open()
    for question in ("Hi", "hard"):
        house.route(question)
    house.conversation = Conversation()
    house.route("Hi")
    assert house.asked == ["open small", "close small", "open big", "close big", "open small"]


class Sense(Media):
    """Senses of a model without towers."""

    def __init__(self, name: str, *kinds: str) -> None:
        self.name, self.kinds = name, kinds

    @property
    def sees(self) -> bool:
        return "image" in self.kinds

    @property
    def hears(self) -> bool:
        return "audio" in self.kinds

    def prepare(self, source: object, image_tokens: int | None = None) -> Medium:
        return Medium("image", self.name, "", 1, None)


@pytest.mark.parametrize(
    ("small", "big", "kind", "why"),
    [
        ("audio", "image", "audio", "small: hard, but big hears no audio"),
        ("image", "audio", "audio", "big: hard"),
        ("image", "audio", "image", "small: hard, but big sees no images"),
        ("audio", "image", "image", "big: hard"),
    ],
)
def test_who_lacks_a_sense_is_passed_over_before_it_is_opened(
    house: House, monkeypatch: pytest.MonkeyPatch, small: str, big: str, kind: str, why: str
) -> None:
    senses = {"small": Sense("small", small), "big": Sense("big", big)}
    monkeypatch.setattr(Opener, "media", lambda _, target: senses[target.folder.name])
    house.open(skills='[[skill]]\nname = "hard"\nimages = true\nmodel = "big"')
    file = MediaFile("file", {"image": "image/png", "audio": "audio/wav"}[kind], b"")
    routed = house.opened.routed
    routed.choose(Asked([{"role": "user", "content": [{"type": kind, kind: file}]}], Params(), "Hi"))
    found = routed.chosen
    told = reason(routed.candidates[found.order[0]].title, found.why, [(name, no) for name, no in found.passed])
    assert told.replace(f"{house.folder}/", "") == why
    assert routed.media.prepare(file).name == why.partition(":")[0]
    assert house.asked == []


def test_what_the_big_one_costs_is_asked_first(house: House) -> None:
    house.say("small", "Small.", "Small.")
    house.usable = 5
    house.open()
    assert house.route("hard") == "small: hard, but big does not fit the memory"
    house.usable = 10**12
    house.open('wait = 0\nremote = "fallback"')
    assert house.route("hard") == "small: hard, but big would take about 0 s to load"


def test_an_answer_from_afar(house: House) -> None:
    house.say("big", "Big.")
    with peer(ANSWER, ANSWER) as server:
        house.open(url=server.url)
        assert (house.route("far"), house.doing) == ("team: far", "asking team")
        assert house.route("Hi") == "team: as before"
        assert house.route("Look", attached="secret") == "big: as before, but team gets no attachments"
    assert not any(b"secret" in one for one in server.requests)


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ([GONE], "503"),
        ([http(b"{}", "429 Slow", "Retry-After: 9")], "429"),
        ([http(b"{}", "401 Who")], "401"),
        ([STREAM + b"data: garbage\n\n"], "it speaks another protocol"),
        ([STREAM], "it broke off"),
    ],
)
def test_before_the_first_token_another_one_answers(house: House, steps: list[Step], reason: str) -> None:
    house.say("big", "Big.")
    with peer(steps) as server:
        house.open(url=server.url)
        assert house.route("far") == f"big: far, but team failed ({reason})"


def test_a_server_that_is_not_there(house: House) -> None:
    house.say("big", "Big.")
    with refused() as url:
        house.open(url=url)
        assert house.route("far").startswith("big: far, but team failed (")


def test_after_the_first_token_the_failure_is_told(house: House) -> None:
    with peer(STREAM + said("Half")) as server:
        house.open(url=server.url)
        with pytest.raises(EndpointFailed, match="broke off"):
            house.turn("far")
    reply = house.conversation.exchanges[-1].reply
    assert reply is not None
    assert (reply.text, reply.finish_reason) == ("Half", "cancelled")
    assert not house.decoders["big"].requests


def test_the_circuit_opens_is_tried_once_and_closes(house: House) -> None:
    failed = "big: far, but team failed (503)"
    with peer(*[GONE] * (FAILURES + 1), ANSWER) as server:
        house.open(url=server.url)
        house.say("big", *["Big."] * (FAILURES + 3))

        def anew() -> str:
            house.conversation = Conversation()
            return house.route("far")

        assert [anew() for _ in range(FAILURES)] == [failed] * FAILURES
        asked = len(server.requests)
        assert anew() == "big: far, but team is left alone for 30 s after failures"
        assert len(server.requests) == asked
        house.now += 31
        assert anew() == failed
        assert anew() == "big: far, but team is left alone for 60 s after failures"
        house.now += 61
        assert anew() == "team: far"


def test_nothing_leaves_without_permission(house: House) -> None:
    house.say("big", "Big.", "Big.", "Big.")
    with peer(ANSWER) as server:
        house.open("", url=server.url)
        assert house.route("far") == "big: far, but team gets no text from here"
        house.open('remote = "ask"', url=server.url)  # nobody is there to be asked
        assert house.route("far") == "big: far, but team was not allowed"
        questions: list[str] = []

        def answer(question: str) -> bool:
            questions.append(question)
            return len(questions) > 1

        house.answer_to = answer
        house.open('remote = "ask"', url=server.url)
        assert house.route("far") == "big: far, but team was not allowed"
        assert not server.requests  # the answer was no
        assert house.route("far") == "team: far"
    assert questions[0].startswith("Send this conversation, about ")
    assert questions[0].endswith("tokens, to team at 127.0.0.1?")


def test_the_big_one_may_be_elsewhere(house: House) -> None:
    house.say("small", "Small.")
    with peer(ANSWER) as server:
        house.open('big = ["nowhere/here", "team"]\nremote = "fallback"', url=server.url)
        assert house.route("hard") == "team: hard, but nowhere/here is not on this machine"
        assert house.route("Look", attached="x").startswith("small: as before, but team gets no attachments")


def test_nobody_can(house: House) -> None:
    house.open()
    with pytest.raises(MlxmtpError, match=r"No model of the router can answer this: .*holds 400 tokens"):
        house.turn("word " * 900)
    assert not house.conversation.exchanges


def test_a_long_question_goes_to_the_one_that_holds_it(house: House) -> None:
    house.say("big", "Big.")
    house.open()
    assert house.route("word " * 90).startswith("big: no skill, but small holds 400 tokens")


def test_tools_keep_to_one_model_within_a_turn(house: House) -> None:
    """A result is never sent to another model than that which called, and skills are not asked again."""
    house.open()
    model = house.opened.model
    assert isinstance(model, RoutedModel)
    model.choose(Asked([{"role": "user", "content": "hard"}], Params(), "hard"))
    house.say("big", "Big.", "Big.")
    said = [{"role": "user", "content": "hard"}]
    for messages in (said, [*said, {"role": "assistant", "content": "Big."}, {"role": "user", "content": "Hi"}]):
        *_, end = model.stream(messages)
        assert isinstance(end, End)
        assert end.stats.route.endswith("big: hard")


def test_tools_go_to_a_model_that_knows_them(house: House) -> None:
    box = Toolbox(builtin("calculator"))
    house.open()
    house.say("small", "Small.")
    assert house.route("Hi") == "small: no skill"
    (house.folders["big"] / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    house.tokenizer = Tokenizer.load(house.folders["big"])
    house.say("big", call('calculate{expression:"6 * 7"}') + "<|tool_response>", "Big.", "Big.")
    assert house.route("How much is it?", tools=box) == "big: no skill, but small knows no tools"
    [result] = [part for one in house.conversation.history.messages for part in one.parts if part.type == "tool_result"]
    assert result.to_dict()["content"] == [{"type": "text", "text": "42"}]
    assert house.route("And again") == "big: as before"  # where the results are
    (house.folders["big"] / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    with pytest.raises(MlxmtpError, match=r"big knows no tools, .*small knows no tools"):
        house.turn("And now?", tools=box)


def unsure(decoder: FakeDecoder, monkeypatch: pytest.MonkeyPatch, logprob: float) -> None:
    monkeypatch.setattr(
        "tests.fake_decoder.fake_logprob",
        lambda token, top: fake_logprob(token, top)._replace(logprob=logprob),
    )


@pytest.mark.parametrize(("logprob", "over"), [(-0.2, False), (-3.0, True)])
def test_an_unsure_model_hands_over(house: House, monkeypatch: pytest.MonkeyPatch, logprob: float, over: bool) -> None:
    unsure(house.decoders["small"], monkeypatch, logprob)
    house.say("small", "I think it might be so, or it might not, which nobody knows at all, as far as I can say.")
    house.say("big", "It is so.")
    house.open('cascade = "logprob"\ncertainty = -1')
    outcome = house.turn("Is it?")
    assert outcome.stats is not None
    if not over:
        assert "hands over" not in outcome.text
        assert outcome.stats.route.endswith("small: no skill, mean log-probability -0.2")
        return
    begun, mark, rest = outcome.text.partition("\n\n[")
    assert begun
    assert mark
    assert rest.endswith("mean log-probability -3]\n\nIt is so.")
    assert "handed over (mean log-probability -3)" in outcome.stats.route
    house.say("big", "Yes.")
    assert house.turn("Sure?").text == "Yes."  # it goes on with the conversation


def test_a_model_hands_over_by_a_tool(house: House) -> None:
    (house.folders["small"] / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    house.tokenizer = Tokenizer.load(house.folders["small"])
    house.say("small", '<|tool_call>call:ask_expert{why:<|"|>Physics.<|"|>}<tool_call|>')
    house.say("big", "It is so.")
    house.open('cascade = "tool"')
    text = house.turn("Is it?").text.replace(f"{house.folder}/", "")
    assert text == "\n\n[small hands over to big: Physics.]\n\nIt is so."


@pytest.mark.parametrize("over", [False, True])
@pytest.mark.parametrize("cascade", ["logprob", "tool"])
def test_calls_of_a_model_that_hands_over_are_not_run(
    house: House, monkeypatch: pytest.MonkeyPatch, cascade: str, over: bool
) -> None:
    for folder in house.folders.values():
        (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    house.tokenizer = Tokenizer.load(house.folders["small"])
    unsure(house.decoders["small"], monkeypatch, -3.0 if over else -0.2)
    expert = call('ask_expert{why:"Physics."}') if over and cascade == "tool" else ""
    house.say("small", "Hm." + call('calculate{expression:"6 * 7"}') + expert + "<|tool_response>", "So it is.")
    house.say("big", "It is so.")
    house.open(f'cascade = "{cascade}"\ncertainty = -1')
    text = house.turn("Is it?", tools=Toolbox(builtin("calculator"))).text
    results = [one for one in house.conversation.history.messages if one.role == "tool"]
    assert (text.endswith("]\n\nIt is so."), len(results)) == ((True, 0) if over else (False, 1))


def test_closing_an_answer_frees_a_trial(house: House) -> None:
    with peer(GONE, GONE, GONE, [STREAM + b": wait\n\n", 3.0], ANSWER) as server:
        house.open(url=server.url)
        house.say("big", *["Big."] * FAILURES)
        for _ in range(FAILURES):
            house.conversation = Conversation()
            house.route("far")
        house.now += 31
        house.conversation = Conversation()

        class Stop(Exception):
            pass

        def stop(done: int, total: int) -> None:
            raise Stop

        turn = Turn(house.conversation, "ask", Exchange("far"))
        turn.begin(house.opened, Params())
        answer = turn.stream(Params(), stop)
        with pytest.raises(Stop):
            list(answer)
        turn.end("cancelled")
        house.conversation = Conversation()
        assert house.route("far") == "team: far"


def test_the_big_one_sums_up_what_is_too_long_in_parts(house: House) -> None:
    house.say("big", "A and B.", "C.", "All.")
    house.open()
    answers = [(name, f"{name} " + "word " * 60) for name in "abc"]
    doing: list[str] = []
    result = summarise(house.opened, "What do they share?", answers, Params(max_tokens=20), "Be brief.", doing.append)
    assert (result.response, doing) == ("All.", ["summary of part 1 of 2", "summary of part 2 of 2", "summary"])
    assert result.end is not None
    assert result.end.stats.route.endswith("big: summary")
    prompt = house.tokenizer.detokenizer()
    text = "".join(prompt.add(token) for token in house.decoders["big"].requests[-1].prompt)
    assert "--- part 1 ---\nA and B.\n\n--- part 2 ---\nC.\n\nWhat do they share?" in text
    with pytest.raises(ContextOverflow, match="too long to be summed up"):
        summarise(house.opened, "?", [(name, "word " * 300) for name in "ab"], Params())


def test_ask_takes_a_router(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    """`ask` says who answered and where the text went."""
    with peer(ANSWER) as server:
        house.open('big = "team"\nremote = "fallback"', url=server.url)
        house.say("small", "Small.", "Small.")
        assert app.main(["ask", "--no-stdin", "-m", "auto", "--json", "Hi"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["response"], found["stats"]["sent_to"]) == ("Small.", "")
        assert found["stats"]["route"].endswith("small: no skill")
        assert app.main(["ask", "--no-stdin", "-m", "auto", "A hard one"]) == 0
        assert capsys.readouterr() == ("From afar.\n", "Note: The text went to 127.0.0.1.\n")


def test_a_conversation_at_the_terminal(house: House, tmp_path: Path) -> None:
    """The status line says who answered and why; what breaks off is kept, and told; `/stats` has it all."""
    house.say("small", "Small.")
    house.say("big", "Big.")
    with peer(ANSWER, STREAM + said("Half")) as server:
        house.open(url=server.url)
        there = Conversing(tmp_path / "chat")
        there.worker.load(lambda: house.opened)
        text = there.say("Hi", "A hard one", "Go far", "/stats", "And far again", "/stats off")
        text = text.replace(f"{house.folder}/", "")
    lines = [line for line in text.split("\n") if " tok · " in line]
    assert [line.split(" · ")[0] for line in lines] == ["small: no skill", "big: hard", "team: far"]
    assert "team: far · text went to 127.0.0.1 · " in text
    assert "model        team: far" in text
    assert "sent to      127.0.0.1" in text
    cut = text[text.index("> And far again") :]
    assert "Half" in cut
    assert "broke off its answer" in cut
    assert there.talk.conversation.exchanges[-1].question == "And far again"


def test_the_context_is_that_of_models_that_may_answer(house: House) -> None:
    unused = '[endpoint.unused]\nurl = "127.0.0.1:1"\ncontext = 1000000\n'
    house.open(skills=SKILLS + unused)
    assert house.opened.context == 800
    named = f'{SKILLS}[[skill]]\nname = "all"\nmodel = "unused"\n{unused}'
    house.open(skills=named)
    assert house.opened.context == 1_000_000
    house.open('remote = "never"', skills=named)
    assert house.opened.context == 800
