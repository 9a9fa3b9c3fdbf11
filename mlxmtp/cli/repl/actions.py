"""The loop of the conversation: a line comes in, a turn or a command goes out."""

from dataclasses import replace
from typing import Any

import typer

from mlxmtp.app.open import Checkpoint, exact_of
from mlxmtp.app.structured import constraint_of
from mlxmtp.app.turn import exchange_tokens, reserve_for
from mlxmtp.chat.history import Exchange, title_of
from mlxmtp.chat.material import read_text
from mlxmtp.chat.sessions import Sessions
from mlxmtp.chat.transcript import as_markdown, export
from mlxmtp.cli.calls import call_in_full
from mlxmtp.cli.commands.sessions import show_list
from mlxmtp.cli.repl import files, turns
from mlxmtp.cli.repl.chat import Chat, Leave
from mlxmtp.cli.repl.slash import HELP, KEYS_HELP, PLAIN_KEYS_HELP, Call, Message, Unknown, help_of, parse
from mlxmtp.cli.resume import opener_of
from mlxmtp.cli.terminal.fences import all_fences
from mlxmtp.cli.terminal.output import copy_to_clipboard
from mlxmtp.cli.terminal.presenters import AnswerView, stats_rows
from mlxmtp.cli.terminal.signals import interrupts, raises
from mlxmtp.errors import ModelNotFound, SessionError, UsageError
from mlxmtp.settings import CHAT_KEYS, TABLE, typed_value
from mlxmtp.units import nearest

_SHOWN = 12  # lines of the last question that a conversation shows when it goes on
_AS_IT_WAS = "The question stays as it was."
_THINK: dict[str, dict[str, Any]] = {
    "": {}, "on": {"think": True}, "off": {"think": False}, "show": {"show_thinking": True},
    "hide": {"show_thinking": False},
}  # fmt: skip


class Actions:
    """Carries out commands: `/undo 2` is `do_undo("2")`. They raise MlxmtpError for what a person did wrong."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat

    def carry_out(self, what: Call | Unknown | Message) -> None:
        """Do what a line means. Raises Leave to end the conversation."""
        if isinstance(what, Message) and what.text:
            turns.send(self.chat, what.text)
            return
        edited = self.chat.line.end_edit()
        if isinstance(what, Call):
            self.act(what)
        elif isinstance(what, Unknown):
            near = f"Did you mean {what.nearest}?" if what.nearest else "/help lists them."
            self.chat.say(f"There is no command {what.word}. {near} A space before it sends it as text.")
        elif edited:
            self.chat.say(_AS_IT_WAS)

    def act(self, call: Call) -> None:
        if call.argument and not call.command.usage:
            raise UsageError(f"/{call.command.name} takes nothing after it, so nothing was done.")
        getattr(self, f"do_{call.command.name}")(call.argument)

    def do_help(self, argument: str) -> None:
        if argument:
            self.chat.say(help_of(argument))
        else:
            self.chat.say_rows(HELP)
            self.chat.say(PLAIN_KEYS_HELP if self.chat.out.look.dumb else KEYS_HELP)

    def do_exit(self, _: str) -> None:
        raise Leave

    def do_clear(self, _: str) -> None:
        if not self.chat.may_leave():
            return
        self.chat.leave()
        self.chat.conversation.clear()
        self.chat.begin_anew(self.chat.conversation)
        self.chat.say("A new conversation.")

    def do_regen(self, _: str) -> None:
        self._last("answer again")
        turns.again(self.chat)

    def do_undo(self, argument: str) -> None:
        count = int(argument or "1") if not argument or argument.isdecimal() else 0
        if count < 1:
            raise UsageError("/undo takes how many exchanges to take back, 1 or more.")
        self._last("take back")
        taken = self.chat.conversation.undo(count)
        self.chat.undone.append(taken)
        for one in taken:
            self.chat.say(f"Taken back: {title_of(one.question or one.material)}")

    def do_redo(self, _: str) -> None:
        if not self.chat.undone:
            raise UsageError("Nothing was taken back that could come back: /undo does that.")
        for one in self.chat.undone.pop():
            for message in one.messages:
                self.chat.conversation.add(message)
            self.chat.say(f"Back again: {title_of(one.question or one.material)}")

    def do_edit(self, argument: str) -> None:
        last = self._last("edit")
        self.chat.line.offer("" if argument else last.question, edits=True)
        if argument:
            turns.send(self.chat, argument)
        else:
            leave = "Ctrl+C" if self.chat.out.look.dumb else "an empty line"  # a plain line cannot be emptied
            self.chat.say(f"The last question; Enter asks it again, {leave} leaves it as it was.")

    def do_continue(self, _: str) -> None:
        last = self._last("go on with")
        if last.reply is None or not last.answered or last.reply.finish_reason not in ("cancelled", "length"):
            raise UsageError("The last answer is complete: there is nothing to go on with.")
        turns.go_on(self.chat)

    def do_copy(self, argument: str) -> None:
        self.chat.say(copy_to_clipboard(self._to_copy(argument), self.chat.out))

    def _to_copy(self, argument: str) -> str:
        if argument == "all":
            self._last("copy")
            return as_markdown(self.chat.conversation.history, self.chat.conversation.session)
        answered = [one.reply for one in self.chat.conversation.exchanges if one.reply is not None and one.answered]
        if not answered:
            raise UsageError("There is no answer yet to copy.")
        text = answered[-1].text
        if not argument:
            return text.strip("\n") + "\n"
        blocks = all_fences(text)
        number = len(blocks) if argument == "code" else int(argument) if argument.isdecimal() else -1
        if number < 0:
            raise UsageError("/copy takes nothing, all, code, or the number of a code block.")
        if not 1 <= number <= len(blocks):
            there = "no code block" if not blocks else f"{len(blocks)} code block{'s' if len(blocks) > 1 else ''}"
            raise UsageError(f"The last answer has {there}.")
        return blocks[number - 1]

    def do_file(self, argument: str) -> None:
        files.carry_out(self.chat, argument)

    def do_paste(self, _: str) -> None:
        files.paste(self.chat)

    def paste_key(self) -> None:
        """Do what /paste does, while a line is being typed."""
        try:
            files.paste(self.chat)
        except Exception as error:  # noqa: BLE001  (the line that is typed goes on)
            self.chat.complain(error)

    def do_system(self, argument: str) -> None:
        conversation = self.chat.conversation
        if not argument:
            self.chat.say(conversation.system or "There is no system prompt. /system TEXT sets one.")
            return
        text = "" if argument == "-" else argument
        if argument.startswith("@"):
            name = argument[1:]
            quoted = len(name) > 2 and name[0] == name[-1] and name[0] in "\"'"
            text = read_text(name[1:-1] if quoted else name)
        conversation.set_system(text)
        self.chat.say("The system prompt is set." if text else "There is no system prompt any more.")

    def do_save(self, argument: str) -> None:
        conversation = self.chat.conversation
        if conversation.journal is None:
            raise UsageError(
                "This conversation is not saved, because of --no-save. /export FILE.md writes it to a file."
            )
        if argument:
            sessions = Sessions(self.chat.loaded.places.sessions)
            conversation.rename(sessions.check_name(argument, conversation.journal.id))
        conversation.journal.flush()
        if conversation.trouble is not None:
            raise SessionError(conversation.trouble)
        if not conversation.exchanges:
            named = f" as {conversation.history.name}" if argument else ""
            self.chat.say(f"There is nothing to save yet; from the next question on everything is saved{named}.")
        elif argument:
            self.chat.say(f"Saved as {conversation.history.name}.")
        else:
            name = conversation.history.name or conversation.journal.id
            self.chat.say(f"Saved as session {name}. /save NAME gives it a name.")

    def do_load(self, argument: str) -> None:
        if not argument:
            raise UsageError("/load takes a name or an id; /sessions lists them.")
        chat = self.chat
        sessions = Sessions(chat.loaded.places.sessions)
        summary = sessions.find(argument, list_with="/sessions lists them.")
        if chat.conversation.session == summary.id:
            chat.say("That is this session.")
            return
        if not chat.may_leave():
            return
        chat.leave()  # first: Ctrl+C meanwhile must not leave the other one locked
        unsaved = chat.conversation.journal is None
        resumed = sessions.read(summary) if unsaved else sessions.open(summary)
        chat.conversation.close()
        chat.begin_anew(resumed.conversation)
        for remark in resumed.remarks:
            chat.out.note(remark)
        target = chat.model.target
        if target is not None and chat.conversation.model != target.name:
            chat.conversation.use_model(target.name)
        show_resumed(chat)

    def do_sessions(self, _: str) -> None:
        listing = Sessions(self.chat.loaded.places.sessions).listing()
        for remark in listing.remarks:
            self.chat.out.note(remark)
        if not listing.sessions:
            self.chat.say("There are no saved conversations yet.")
            return
        show_list(self.chat.out, listing.sessions)
        self.chat.say("/load ID goes on with one.")

    def do_export(self, argument: str) -> None:
        if not argument:
            raise UsageError("/export takes the name of a file that ends in .md or .json.")
        name = files.names("/export", argument)[0] if argument[0] in "\"'" else argument
        path = export(self.chat.conversation.history, name, self.chat.conversation.session)
        self.chat.say(f"Written to {path}.")

    def do_context(self, _: str) -> None:
        chat, model = self.chat, self.chat.model
        if not chat.ready():
            return
        conversation, context = chat.conversation, model.context
        tokenizer = model.opened.model.tokenizer
        messages = model.opened.model.media.prepared(conversation.messages(Exchange("")), chat.settings.image_tokens)
        prompt = tokenizer.prompt_ids(messages, think=bool(chat.settings.think), tools=chat.tools.declarations)
        system, said = model.tokens_of(conversation.system), exchange_tokens(conversation, messages, tokenizer)
        staged = sum(model.tokens_of(one.text) for one in chat.line.files)
        reserve = reserve_for(context, chat.settings.max_tokens)
        rows = [
            ("system prompt", system),
            (f"{len(said)} exchange{'' if len(said) == 1 else 's'}", sum(said)),
            ("format", len(prompt) - system - sum(said)),
            ("files that wait", staged),
            ("kept for the answer", reserve),
            ("free", max(0, context - len(prompt) - staged - reserve)),
            ("context", context),
        ]
        chat.say_rows([(name, f"{count:>8,} tokens") for name, count in rows if count or name == "free"])
        if dropped := len(conversation.dropped):
            left = "exchange is" if dropped == 1 else f"{dropped} exchanges are"
            chat.say(f"The oldest {left} left out of the prompt.")

    def do_model(self, argument: str) -> None:
        chat, model = self.chat, self.chat.model
        if not argument:
            assert model.target is not None
            chat.say(model.opener.about(model.target, model.drafter))
            return
        try:
            # A drafter that was named belongs to the model before; the new one's own is taken.
            self._load_with(argument, model=argument, draft_model=None)
        except (typer.Abort, KeyboardInterrupt):  # Ctrl+C at the question whether to download, or while it does
            chat.say("The model stays as it was.")
        else:
            chat.say(f"{argument} answers from here on.")

    def _load_with(self, target: str | Checkpoint, **settings: object) -> None:
        """Begin to read a model with other settings, which are taken back if it is refused."""
        before, opener = self.chat.loaded, self.chat.model.opener
        self.chat.change(**settings)
        try:
            if isinstance(target, str):
                origins = {**before.origins, "model": "flag"}
                if origins.get("url") == "flag":  # the model was typed later, so a server that it names goes before
                    origins["url"] = "flag before"
                self.chat.loaded = replace(self.chat.loaded, origins=origins)
                self.chat.model.opener = opener_of(self.chat.loaded, self.chat.out)
                self.chat.model.opener.agree = self.chat.permits
                target = self.chat.model.opener.target(target)
            self.chat.load(target)
        except BaseException:
            self.chat.loaded, self.chat.model.opener = before, opener
            raise

    def do_set(self, argument: str) -> None:
        word, _, text = argument.partition(" ")
        if not word:
            self.chat.say_rows([(key, self._shown(key)) for key in CHAT_KEYS])
            return
        key = word.lstrip("-").replace("_", "-")
        if key not in CHAT_KEYS:
            near = nearest(key, CHAT_KEYS)
            hint = f"Did you mean {near}?" if near else f"There are: {', '.join(CHAT_KEYS)}."
            raise UsageError(f"There is no setting {word}. {hint}")
        if text:
            name = key.replace("-", "_")
            self.chat.change(**{name: None if text.strip() == "default" else typed_value(name, text.strip())})
        self.chat.say(f"{key} is {self._shown(key)}.")

    def _shown(self, key: str) -> str:
        name = key.replace("-", "_")
        value = getattr(self.chat.settings, name)
        if value is None:
            words = TABLE[name].default.partition(";")[0]
            return "the model's own" if words.startswith("the model's") else words
        return f"{value:g}" if isinstance(value, float) else str(value)

    def do_think(self, argument: str) -> None:
        if argument not in _THINK:
            raise UsageError("/think takes on, off, show or hide.")
        self.chat.change(**_THINK[argument])
        shown = "hidden" if self.chat.settings.show_thinking is False else "shown while it lasts"
        self.chat.say(f"Thinking is on and {shown}." if self.chat.settings.think else "Thinking is off.")

    def do_tools(self, argument: str) -> None:
        chat = self.chat
        chat.renew_tools()
        box = chat.tools.box
        word, _, name = argument.partition(" ")
        if argument == "show":
            chat.say("\n".join(call_in_full(*one) for one in chat.last.calls) or "The last answer called no tools.")
        elif not chat.tools:
            raise UsageError("There are no tools here: mlxmtp chat --tools time,files=FOLDER gives some.")
        elif word in ("on", "off") and name:
            names = box.switch(name.strip(), on=word == "on")
            chat.say(f"{', '.join(names)}: {word}.")
        elif argument:
            raise UsageError("/tools takes nothing, show, on NAME or off NAME.")
        else:
            rows = [(one, f"{'off; ' if one in box.off else ''}{tool.label}") for one, tool in box.tools.items()]
            chat.say_rows([(one, f"{said}{'' if box.tools[one].reads else ', asks first'}") for one, said in rows])
            for complaint in chat.tools.complaints:
                chat.say(complaint)

    def do_schema(self, argument: str) -> None:
        chat = self.chat
        if argument == "off":
            chat.change(schema=None)
        elif argument:
            constraint = constraint_of(replace(chat.settings, schema=argument))
            assert constraint is not None
            chat.change(schema=constraint.source)
            chat.model.worker.prepare(lambda opened: opened.model.prepare_constraints())  # while the question is typed
        schema = chat.settings.schema
        chat.say("Answers are free." if schema is None else f"Answers are JSON of {title_of(schema)}")

    def do_draft(self, argument: str) -> None:
        if "mtp" in argument or "copy" in argument:
            sources = typed_value("draft_from", argument)
            exact_of(replace(self.chat.settings, draft_from=sources))  # refuses what exact text cannot have
            self.chat.change(draft_from=sources)
        elif argument:
            number = typed_value("num_draft_tokens", {"on": "auto", "off": "0"}.get(argument, argument))
            exact_of(replace(self.chat.settings, num_draft_tokens=number))
            target = self.chat.model.target
            if number != 0 and target is not None and self.chat.model.drafter is None:
                if self.chat.settings.draft_model is None and not self.chat.model.opener.has_drafter(target):
                    raise ModelNotFound(
                        f"There is no drafter for '{target.name}' here. Leave, and name one: "
                        "mlxmtp chat -c --draft-model NAME"
                    )
                self._load_with(target, draft=True)  # after all: --no-draft left it out
            self.chat.change(num_draft_tokens=number)
        number = self.chat.settings.num_draft_tokens
        copies = "copy" in (self.chat.settings.draft_from or "") and number in (None, "auto")
        state = f"Drafting {number} token{'' if number == 1 else 's'} per round."
        if self.chat.model.drafter is None:
            state = f"{'Drafts are copied from the text' if copies else 'Drafting is off'}: no drafter is loaded."
        elif number == 0:
            state = "Drafting is off."
        elif number in (None, "auto"):
            state = "The draft length adapts to acceptance and measured speed."
            state += " Drafts are copied from the text, too, where it repeats itself." if copies else ""
        self.chat.say(state)

    def do_stats(self, argument: str) -> None:
        if argument not in ("", "on", "off"):
            raise UsageError("/stats takes on or off, or nothing.")
        if argument:
            self.chat.change(stats=argument == "on")
            self.chat.say(
                f"A line of figures {'follows each answer' if argument == 'on' else 'no longer follows answers'}."
            )
        elif self.chat.last.stats is None:
            self.chat.say("There are no figures yet: ask something first.")
        else:
            self.chat.say_rows(stats_rows(*self.chat.last.stats))

    def _last(self, what: str) -> Exchange:
        """Return the last exchange. Raises UsageError if nothing was asked."""
        if not self.chat.conversation.exchanges:
            raise UsageError(f"Nothing has been asked yet, so there is nothing to {what}.")
        return self.chat.conversation.exchanges[-1]


def run(chat: Chat) -> None:
    """Carry out lines until Ctrl+D or /exit. Ctrl+C leaves what is being done, never the conversation."""
    actions, refused = Actions(chat), False
    chat.reader.on_picture = actions.paste_key
    with interrupts(lambda: None):
        while True:
            text, edits = chat.line.take_text(), chat.line.edits
            try:
                # What comes back into the line was a message; what was typed meanwhile, not pasted, may be a command.
                typed = chat.keys.typed_ahead()
                whole = "\n".join(part for part in (text, typed.text) if part)
                literal = bool(text) or typed.pasted
                chat.reader.refused, refused = refused and bool(text), False
                line = chat.reader.read(whole, literal=literal, edits=edits, thought=chat.last.unfolded)
            except EOFError:
                return
            except KeyboardInterrupt:
                chat.say(_AS_IT_WAS if chat.line.end_edit() else "Ctrl+D leaves, /help lists the commands.")
                continue
            try:
                with raises():
                    actions.carry_out(parse(line.text, pasted=line.pasted))
            except Leave:
                return
            except Exception as error:  # noqa: BLE001  (one turn has failed, and the conversation is the person's)
                chat.complain(error)
                refused = True
            except KeyboardInterrupt:  # outside of an answer: files are read, tokens counted, a list is made
                chat.say("\nStopped.")


def show_resumed(chat: Chat) -> None:
    """Show where a conversation that goes on was left: its title and the last exchange."""
    said = chat.conversation.exchanges
    count = len(said) + len(chat.conversation.dropped)
    chat.say(f"Going on with: {chat.conversation.history.title} ({count} exchange{'' if count == 1 else 's'})")
    if not said:
        return
    rows = said[-1].question.split("\n")
    more = [f"… {len(rows) - _SHOWN} more lines"] if len(rows) > _SHOWN else []
    chat.say("\n".join(["", *(f"> {row}" for row in rows[:_SHOWN]), *more, ""]))
    reply = said[-1].reply
    if reply is not None and reply.text.strip():
        view = AnswerView(chat.out, plain=bool(chat.settings.plain), clock=chat.clock)
        view.text(reply.text)
        view.end()
    chat.out.write("\n")
