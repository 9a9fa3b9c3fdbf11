"""The conversation that a command goes on with, and the models that can answer in it."""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from mlxmtp.app.endpoints import AUTO, endpoint_of, with_model
from mlxmtp.app.open import Opener
from mlxmtp.chat.conversation import Conversation
from mlxmtp.chat.sessions import NOTHING_TO_CONTINUE, Sessions
from mlxmtp.cli.calls import agrees
from mlxmtp.cli.obtain import offer
from mlxmtp.cli.options import can_ask
from mlxmtp.cli.terminal import keyboard
from mlxmtp.cli.terminal.output import Output
from mlxmtp.errors import SessionError, UsageError
from mlxmtp.settings import Loaded


def opener_of(loaded: Loaded, out: Output) -> Opener:
    """Return the models on this machine; one that is missing is offered for download, if somebody can be asked.

    Where the settings name an endpoint there is one model, the server's, or the router's several. Raises UsageError for
    what is no address, ConfigError for a router that is incomplete.
    """
    agree = partial(agrees, out) if can_ask(out) else None
    if (endpoint := endpoint_of(loaded)) is not None:
        from mlxmtp.app.remote_model import RemoteOpener

        return RemoteOpener(loaded, tell=out.note, attended=out.error_terminal, endpoint=endpoint)
    kind: type[Opener] = Opener
    if loaded.settings.model == AUTO:
        from mlxmtp.app.routed_model import RouterOpener as kind
    return kind(loaded, out.note, partial(offer, loaded, out), out.error_terminal, agree)


def conversation_for(
    loaded: Loaded,
    out: Output,
    *,
    latest: bool,
    resume: str | None,
    save: bool,
    read_only: bool = False,
) -> tuple[Loaded, Conversation]:
    """Return the conversation that the flags mean, and settings with its model. Raises UsageError if there is none.

    It goes on with the `latest` session or with the one named `resume`, which is only read if it is `read_only`.
    A model or system prompt named on the command line counts against what the session says.
    """
    from mlxmtp.chat.attach import read_reference

    system = read_reference(loaded.settings.system or "", loaded.prompts)
    sessions = Sessions(loaded.places.sessions)
    if not latest and resume is None:
        return loaded, Conversation(system=system, journal=sessions.create() if save else None)
    summary = sessions.latest(out.note) if resume is None else sessions.find(resume)
    resumed = sessions.read(summary) if read_only else sessions.open(summary)
    for remark in resumed.remarks:
        out.note(remark)
    conversation = resumed.conversation
    if loaded.origins.get("system") == "flag" and system != conversation.system:
        conversation.set_system(system)
    if conversation.model and loaded.origins.get("model") != "flag":
        if conversation.model == AUTO or conversation.model in loaded.endpoints:
            return with_model(loaded, conversation.model, "session"), conversation
        if loaded.settings.url is None and Opener(loaded, out.note).has(conversation.model):  # it stays on this machine
            return with_model(loaded, conversation.model, "session"), conversation
        if opener_of(loaded, out).has(conversation.model):
            return with_model(_at_its_server(loaded), conversation.model, "session"), conversation
        gone = "is not here: -m names another model, --url the server that has it"
        out.note(f"Model '{conversation.model}', which this conversation was with, {gone}.")
    return loaded, conversation


def _at_its_server(loaded: Loaded) -> Loaded:
    """Return settings in which a server named by `model` is named by `url`: one of its models may take that place."""
    settings, origins = loaded.settings, loaded.origins
    if settings.url is not None or endpoint_of(loaded) is None:
        return loaded
    url = {"url": origins.get("model", "")}
    return replace(loaded, settings=replace(settings, url=settings.model), origins={**origins, **url})


def chosen(loaded: Loaded, out: Output) -> str:
    """Return the session that a person names from the list of those there are. Raises UsageError if there is none.

    Ctrl+D leaves without a conversation, by SystemExit.
    """
    from mlxmtp.cli.commands.sessions import show_list

    store = Sessions(loaded.places.sessions)
    listing = store.listing()
    for remark in listing.remarks:
        out.note(remark)
    sessions = listing.sessions[:20]
    if not sessions:
        raise UsageError(NOTHING_TO_CONTINUE)
    show_list(out, sessions)
    out.settle()
    keyboard.release()
    names = [one.name or one.id for one in sessions]
    ask = input if out.look.dumb else _with_arrows(names)
    while True:
        try:
            name = ask(f"ID or name, Enter for {names[0]}: ").strip() or names[0]
            store.find(name)
        except EOFError:
            sys.stdout.write("\n")
            raise SystemExit(0) from None
        except (SessionError, UsageError) as error:
            out.error(str(error))
            continue
        keyboard.hold()
        return name


def _with_arrows(names: list[str]) -> Callable[[str], str]:
    """Return a question in which the arrows go through the names, from the first on."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import InMemoryHistory

    def ask(question: str) -> str:
        session: PromptSession[str] = PromptSession(history=InMemoryHistory(names[::-1]))
        session.output.enable_cpr = False  # type: ignore[attr-defined]  # a terminal may answer into the text
        return session.prompt(question)

    return ask
