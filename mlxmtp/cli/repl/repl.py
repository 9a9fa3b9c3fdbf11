"""The loop of the conversation: a line comes in, a command or a turn goes out."""

from __future__ import annotations

from mlxmtp.cli.repl import turns
from mlxmtp.cli.repl.actions import Actions
from mlxmtp.cli.repl.chat import Chat, Leave
from mlxmtp.cli.repl.slash import Call, Message, Unknown, parse

_AS_IT_WAS = "The question stays as it was."


def run(chat: Chat) -> None:
    """Carry out lines until Ctrl+D or /exit."""
    actions = Actions(chat)
    while True:
        text, edits = chat.line.take_text(), chat.line.edits
        try:
            # What comes back into the line was a message; what was typed meanwhile, not pasted, may be a command.
            typed = chat.keys.typed_ahead()
            whole = "\n".join(part for part in (text, typed.text) if part)
            literal = bool(text) or typed.pasted
            line = chat.reader.read(whole, literal=literal, edits=edits, thought=chat.last.thought)
        except EOFError:
            return
        except KeyboardInterrupt:
            chat.say(_AS_IT_WAS if chat.line.end_edit() else "Ctrl+D leaves, /help lists the commands.")
            continue
        try:
            _carry_out(chat, actions, parse(line.text, pasted=line.pasted))
        except Leave:
            return
        except Exception as error:  # noqa: BLE001  (one turn has failed, and the conversation is the person's)
            chat.complain(error)
        except KeyboardInterrupt:  # outside of an answer: files are read, tokens counted, a list is made
            chat.say("\nStopped.")


def _carry_out(chat: Chat, actions: Actions, what: Call | Unknown | Message) -> None:
    if isinstance(what, Message) and what.text:
        turns.send(chat, what.text)
        return
    edited = chat.line.end_edit()
    if isinstance(what, Call):
        actions.act(what)
    elif isinstance(what, Unknown):
        near = f"Did you mean {what.nearest}?" if what.nearest else "/help lists them."
        chat.say(f"There is no command {what.word}. {near} A space before it sends it as text.")
    elif edited:
        chat.say(_AS_IT_WAS)
