"""The line a person types into, by prompt_toolkit, which takes a tenth of a second to import."""

import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import completion_is_selected, has_completions, is_searching
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout.processors import TabsProcessor, Transformation, TransformationInput
from prompt_toolkit.output.color_depth import ColorDepth
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.renderer import Renderer
from prompt_toolkit.shortcuts import CompleteStyle

from mlxmtp.chat.material import dropped_paths
from mlxmtp.cli.repl.completion import Sources, common_start, complete, quoted
from mlxmtp.cli.repl.slash import CONTINUED, PROMPT, Line, Reader, is_open
from mlxmtp.cli.terminal import keyboard
from mlxmtp.cli.terminal.rows import bold, dim, folded, wrapped
from mlxmtp.environment import editor
from mlxmtp.errors import MlxmtpError
from mlxmtp.files import write_atomically

_LONGEST_HISTORY = 2**21  # bytes: all of it is read at every start, and a page that was pasted is an entry, too
_BEGINNING = re.compile(r"\s*\S*")


class LineEditor(Reader):
    """prompt_toolkit: history in a file, completion, editor, paste as it is."""

    def __init__(self, history: Path | None, sources: Sources, *, color: bool) -> None:
        """`history` None keeps nothing."""
        self._sources = sources
        self._thought = ""  # what Ctrl+T shows
        self._edits = False  # the line is about something that was said: Ctrl+C leaves that as it is
        self._literal = ""  # blanks and first word of text that is no command: a line is none while it begins with it
        output = _ClearingOutput.from_pty(sys.stdout)
        output.enable_cpr = False  # never asks where the cursor is: a terminal may not answer, or answer into the text
        self._session: PromptSession[str] = PromptSession(
            [("bold", PROMPT)],
            multiline=True,
            prompt_continuation=CONTINUED,
            history=_history(history),
            completer=_Completer(sources),
            complete_while_typing=False,
            complete_style=CompleteStyle.MULTI_COLUMN,
            enable_suspend=True,
            tempfile_suffix=".md",
            key_bindings=self._bindings(),
            input_processors=[_Tabs(char1=" ", char2=" ")],
            color_depth=None if color else ColorDepth.DEPTH_1_BIT,
            output=output,
        )
        self._session.app.renderer = _WrappedRenderer(self._session.app.renderer.style, output)
        self._session.default_buffer.on_text_changed += self._changed

    def read(self, given: str = "", *, literal: bool = False, edits: bool = False, thought: str = "") -> Line:
        self._edits, self._thought = edits, thought
        self._literal = _beginning(given) if literal else ""
        self._session.app.erase_when_done = False
        if self.refused and len(self._rows(given)) + 3 > self._session.output.get_size().rows:
            given = ""  # it would push the reason out of the window
            sys.stdout.write(dim("The message is kept: the Up key brings it back.") + "\n\n")
            sys.stdout.flush()
        keyboard.hold()
        try:
            # From one raw mode to the other: an Enter that is typed in between would be no Enter in line mode.
            text = self._session.prompt(default=given)
        finally:
            keyboard.modes.mark_pastes()  # what is typed while a command does its work is for the next line, too
        if self._session.app.erase_when_done:
            sys.stdout.write("".join(f"{row}\n" for row in self._rows(text)))
            sys.stdout.flush()
        return Line(text, self._is_literal(text))

    def agree(self, question: str) -> bool:
        try:
            return super().agree(question)
        finally:
            keyboard.hold()

    def _changed(self, buffer: Buffer) -> None:
        if not buffer.text:
            self._literal = ""

    def _rows(self, text: str) -> list[str]:
        columns = self._session.output.get_size().columns - len(PROMPT)
        first, *others = folded(text, columns)
        return [bold(PROMPT) + first, *(f"{CONTINUED}{row}".rstrip() for row in others)]

    def _is_literal(self, text: str) -> bool:
        return bool(self._literal) and text.startswith(self._literal)

    def _edit(self, buffer: Buffer) -> None:
        """Open the editor, or say that the one people have set is not there: another one would be a surprise."""
        try:
            name = editor()[0]
        except MlxmtpError as error:
            self._show(dim(str(error)) + "\n")
            return
        if shutil.which(name) or name == "vi":
            buffer.open_in_editor()
        else:
            self._show(dim(f"The editor {name} is not there: set VISUAL or EDITOR.") + "\n")

    def _show(self, text: str) -> None:
        self._above(lambda: sys.stdout.writelines([text]))

    def _above(self, write: Callable[[], object]) -> None:
        """Write above the line. `run_in_terminal` would give echo and line mode back, in which an Enter is lost."""
        app = self._session.app
        app.renderer.erase()
        asleep = signal.set_wakeup_fd(-1)  # a Ctrl+C that ends what is written here is none for the line
        try:
            write()
        finally:
            signal.set_wakeup_fd(asleep)
        sys.stdout.flush()
        app.renderer.reset()
        app.invalidate()

    def _paste(self, buffer: Buffer, text: str) -> None:
        paths = dropped_paths(text)
        if paths and not buffer.document.char_before_cursor.strip():
            text = "".join(f"@{_named(path)} " for path in paths)  # files were dropped on the window
        elif buffer.cursor_position == 0:
            self._literal = _beginning(text)
        buffer.insert_text(text)

    def _complete(self, buffer: Buffer) -> None:
        """Put what all completions begin with, or show them; prompt_toolkit only does so for what continues a text."""
        length, words = complete(buffer.document.text_before_cursor, self._sources)
        common = common_start(words)
        if len(words) == 1 or len(common) > length:
            buffer.delete_before_cursor(length)
            buffer.insert_text(common)
        else:
            buffer.start_completion()

    def _bindings(self) -> KeyBindings:
        bindings = KeyBindings()
        typing = ~is_searching

        @bindings.add("enter", filter=typing & ~completion_is_selected)
        def _(event: KeyPressEvent) -> None:
            if is_open(event.current_buffer.text) and not self._is_literal(event.current_buffer.text):
                event.current_buffer.insert_text("\n")
            else:
                # Of a line that the window does not show as a whole only the last rows would stay there.
                rows = self._session.output.get_size().rows
                event.app.erase_when_done = len(self._rows(event.current_buffer.text)) >= rows
                event.current_buffer.validate_and_handle()

        @bindings.add("enter", filter=completion_is_selected)
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.complete_state = None

        @bindings.add("escape", "enter", filter=typing)
        @bindings.add("c-j", filter=typing)
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        @bindings.add(Keys.BracketedPaste)
        def _(event: KeyPressEvent) -> None:
            self._paste(event.current_buffer, event.data.replace("\r\n", "\n").replace("\r", "\n"))

        @bindings.add("tab", filter=typing & ~has_completions)
        def _(event: KeyPressEvent) -> None:
            self._complete(event.current_buffer)

        @bindings.add("c-c", filter=typing)
        def _(event: KeyPressEvent) -> None:
            if event.current_buffer.text and not self._edits:
                event.current_buffer.reset()  # tells nobody that the text has changed
                self._literal = ""
            else:
                event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

        self._bind_tools(bindings)
        return bindings

    def _bind_tools(self, bindings: KeyBindings) -> None:
        """Bind the keys that leave the line as it is: the editor, the thought, the clipboard's image."""
        typing = ~is_searching

        @bindings.add("c-v", filter=typing)
        def _(event: KeyPressEvent) -> None:
            if self.on_picture is not None:  # a terminal pastes text by keys of its own
                self._above(self.on_picture)

        @bindings.add("c-g", filter=typing)
        def _(event: KeyPressEvent) -> None:
            self._edit(event.current_buffer)

        @bindings.add("c-t", filter=typing)
        def _(event: KeyPressEvent) -> None:
            columns = self._session.output.get_size().columns
            text = "\n".join(wrapped(self._thought.strip("\n"), columns))
            self._show(f"{dim(text)}\n\n" if text else f"{dim('The last answer came without a thought and calls.')}\n")


class _ClearingOutput(Vt100_Output):
    """In the first cell of a window, "clear to the end" makes tmux keep what is on it: the row is cleared first."""

    def erase_down(self) -> None:
        # Between saving the place and going back: there may be no row below. It is always asked for in column 0.
        self.write_raw("\x1b7\x1b[K\x1b[B\x1b[J\x1b8")


class _Tabs(TabsProcessor):
    """Blanks for tabs, and nothing for a line without: taking a long one apart takes seconds."""

    def apply_transformation(self, ti: TransformationInput) -> Transformation:
        tabs = any("\t" in fragment[1] for fragment in ti.fragments)
        return super().apply_transformation(ti) if tabs else Transformation(ti.fragments)


class _WrappedRenderer(Renderer):
    """Erases the line where it is now: of a wider window's rows terminals make several in a narrower one."""

    def erase(self, leave_alternate_screen: bool = True) -> None:
        screen, columns = self.last_rendered_screen, self.output.get_size().columns
        if screen is not None:
            cursor = self._cursor_pos
            rows = (screen.data_buffer[y] for y in range(cursor.y))
            ends = (max((x for x, cell in row.items() if cell.char != " "), default=0) for row in rows)
            self.output.cursor_up(sum(end // columns for end in ends) + cursor.x // columns)
        super().erase(leave_alternate_screen)


class _SafeHistory(FileHistory):
    """A history whose disk may be full or gone: then it is shorter."""

    def load_history_strings(self) -> Iterable[str]:
        try:
            return super().load_history_strings()
        except OSError:
            return ()

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(string)


class _Completer(Completer):
    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        length, words = complete(document.text_before_cursor, self._sources)
        return (Completion(word, start_position=-length) for word in words)


def _named(path: str) -> str:
    """Return a path as it can stand behind an `@`."""
    if '"' not in path:
        return quoted(path)
    return f"'{path}'" if "'" not in path else re.sub(r"([\s\\])", r"\\\1", path)


def _beginning(text: str) -> str:
    found = _BEGINNING.match(text)
    return found.group() if found else ""


def _history(path: Path | None) -> History:
    """Return the file, readable by its owner only; in memory where there is none and none can be made.

    Of a history that has become too long, the older half and more is dropped.
    """
    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o600)
        if path.stat().st_size > _LONGEST_HISTORY:
            newest = path.read_bytes()[-_LONGEST_HISTORY // 2 :]
            begin = newest.find(b"\n# ")  # before every entry's time; lines of its text begin with a plus
            write_atomically(path, newest[begin:].decode(errors="replace") if begin >= 0 else "", private=True)
    except OSError:
        return InMemoryHistory()
    return _SafeHistory(str(path))
