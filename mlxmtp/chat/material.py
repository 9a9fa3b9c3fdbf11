"""Files and folders as text for a model: `-f PATH`, `/file PATH` and `@path`."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from urllib.parse import unquote

from mlxmtp.chat.message import join
from mlxmtp.environment import git_environ
from mlxmtp.errors import ContextOverflow, UsageError
from mlxmtp.media.pdf import MARK as PDF_MARK
from mlxmtp.media.pdf import read_pages
from mlxmtp.media.source import HEAD, Kind, MediaFile, kind_of, media_file, media_type_of
from mlxmtp.media.source import LIMIT as MEDIA_LIMIT

LIMIT = 64 * 1024 * 1024  # bytes of one file: several times what the longest context of any supported model can hold
FOLDER_LIMIT = 4 * 1024 * 1024  # bytes of text in a folder: about a million tokens, more than any context
MOST_FILES = 5000

_BUILDS = frozenset({"__pycache__", "build", "dist", "node_modules", "target", "venv"})
_WRITTEN = bytes({*range(0x20, 0x7F), *range(0x80, 0x100), *b"\t\n\r\f\b\x1b"})  # all but control characters

_PAGE = ", page "  # between the name of a PDF and the number of a page

_HEAD = 8192  # bytes that tell text from something binary
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # byte order marks, of which UTF-16 always has one in a file

_QUOTES = "\"'`“”„‟‘’‚‛«»‹›"  # which of them opens and which closes differs from language to language
_OPENING = "([{<「『（【《〈"
_CLOSING = _QUOTES + ")]}>」』）】》〉.,;:!?…。、，：；！？"  # what a sentence puts after a path

# A mention begins a word, or stands in brackets, or in quotes that begin a word: "john doe"@example.org is an address.
BEFORE_MENTION = r"(?:^|(?<=[\s{open}])|(?<=[{quotes}])(?<![^\s{open}][{quotes}]))".format(
    open=re.escape(_OPENING), quotes=_QUOTES
)
_MENTION = re.compile(BEFORE_MENTION + r"""@(?:"([^"\n]+)"|'([^'\n]+)'|((?:\\.|\S)+))""")
_FILE_ADDRESS = re.compile("file://(localhost)?(?=/)")
_SUFFIXES = frozenset(
    ".c .cfg .conf .cpp .css .csv .docx .go .h .html .ini .java .jpeg .jpg .js .json .jsonl .log .md .mp3 .pdf .png "
    ".py .rb .rs .rst .sh .sql .swift .tex .toml .ts .tsv .tsx .txt .wav .xlsx .xml .yaml .yml".split()
)  # a name with one is meant as a file's


@dataclass(frozen=True, slots=True)
class Material:
    """The text behind one name, every file under a line `--- path ---`, and remarks; `files` counts those with text.

    A picture or a sound is `media` and has no text; of a PDF pages without text are pictures.
    """

    name: str
    text: str
    files: int = 1
    notes: tuple[str, ...] = ()
    media: tuple[MediaFile, ...] = ()


@dataclass(frozen=True, slots=True)
class Tree:
    """The regular files to read, sorted by path, and remarks. `because` says what made the choice."""

    root: Path
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    because: str = ""


def gather(name: str) -> Material:
    """Read a text file, a picture or a sound, or every text file of a folder that git does not ignore (`list_folder`).

    Raises UsageError for what is not there, cannot be read or is no text, ContextOverflow for more than a model reads.
    """
    path = _path(name)
    try:
        folder = path.is_dir()
    except OSError as error:  # a name that is too long, a folder above it that nobody may enter
        raise _unreadable(name, error) from error
    if folder:
        return _gather_folder(name, list_folder(path, name))
    data = _read(path, name, LIMIT, media_limit=MEDIA_LIMIT)
    if (found := of_bytes(data, name)) is not None:
        return found
    text, notes = _text_of(data, name)
    return Material(name, titled(name, text), notes=notes if text else (*notes, f"{name} is empty."))


def of_bytes(data: bytes, name: str) -> Material | None:
    """Return a picture, a sound or a PDF from its bytes, None for anything else. Raises UsageError."""
    if not data.startswith(PDF_MARK):
        return None if (file := media_file(data, name)) is None else Material(name, "", media=(file,))
    if len(data) > MEDIA_LIMIT:
        raise UsageError(f"{name} has more than {MEDIA_LIMIT >> 20} MB: give a smaller file.")
    pages = read_pages(data, name)
    texts = [titled(f"{name}{_PAGE}{page.number}", page.text) for page in pages if page.text]
    seen = [MediaFile(f"{name}{_PAGE}{page.number}", "image/png", page.picture) for page in pages if page.picture]
    notes: tuple[str, ...] = ()
    if texts and seen:
        notes = (f"Of {len(pages)} pages of {name} those without text ({len(seen)}) are read as images.",)
    elif texts:
        notes = (f"{name} is read as text: images in it are not seen.",)
    return Material(name, join(texts), notes=notes, media=tuple(seen))


def names_of(medium: str) -> set[str]:
    """Return the names of the file that an image or a sound may be from: its own, and of a page that of the PDF."""
    return {medium, medium.rpartition(_PAGE)[0] or medium}


def begins_media(head: bytes) -> bool:
    """Return whether a picture, a sound, a video or a PDF begins with `head`."""
    return media_type_of(head) is not None or head.startswith(PDF_MARK)


def read_text(name: str) -> str:
    """Return the text of a file alone. Raises as `gather`."""
    return _text_of(_read(_path(name), name, LIMIT), name)[0]


def text_or_kind(name: str) -> tuple[str, tuple[str, ...], Kind | None]:
    """Return the text of a file and remarks, or no text and the kind of an image or audio. Raises as `gather`."""
    data = _read(_path(name), name, LIMIT, media_limit=HEAD)
    if data.startswith(PDF_MARK):
        raise UsageError(f"{name} is a PDF, which is no input here: mlxmtp ask -f reads PDFs, one at a time.")
    kind = kind_of(media_type_of(data[:HEAD]))
    return ("", (), kind) if kind is not None else (*_text_of(data, name), None)


def mentions(message: str) -> list[str]:
    """Return the paths that `message` names as `@path` or `@"path with blanks"`, each once, if there is such a file."""
    chosen = (next((one for one in names if _exists(one)), None) for names in _mentioned(message))
    return list(dict.fromkeys(one for one in chosen if one is not None))


def names_in(message: str) -> set[str]:
    """Return all that `message` may name behind an `@`, whether it is there or not."""
    return {name for names in _mentioned(message) for name in names}


def missed(message: str) -> list[str]:
    """Return the names behind an `@` that look like a file's, where there is none."""
    absent = [names[-1] for names in _mentioned(message) if not any(map(_exists, names))]
    return [name for name in absent if PurePath(name).suffix.lower() in _SUFFIXES]


def _mentioned(message: str) -> list[list[str]]:
    """Return what each `@` may name: as it stands, without what a sentence puts after it, as a shell escapes it."""
    found = []
    for quoted, single, bare in _MENTION.findall(message):
        names = [quoted or single] if quoted or single else [bare, bare.rstrip(_CLOSING)]
        found.append(names if quoted or single or "\\" not in bare else [*names, *map(unescaped, names)])
    return found


def dropped_paths(text: str) -> list[str]:
    """Return the paths that a terminal pastes for files dropped on it: escaped, in quotes, or as addresses of files.

    None of them for any other text, and for several lines unless they are addresses, as file managers copy them.
    """
    whole = text.strip()
    if not whole.startswith(("/", "~/", "'/", '"/', "file://")):
        return []
    if "\n" in whole and not whole.startswith("file://"):
        return []
    if _exists(whole):  # blanks that nobody escaped
        return [whole]
    try:
        words = shlex.split(whole)
    except ValueError:  # a quotation mark without the other
        words = [unescaped(whole)]
    names = [unquote(_FILE_ADDRESS.sub("", word)) if _FILE_ADDRESS.match(word) else word for word in words]
    rooted = all(name.startswith(("/", "~/")) for name in names)
    return names if rooted and all(map(_exists, names)) else []


def unescaped(name: str) -> str:
    """Return a name without the backslashes that a shell would take away."""
    return re.sub(r"\\(.)", r"\1", name)


def titled(name: str, text: str) -> str:
    """Return `text` under a line that says where it is from."""
    shown = os.fsencode(name).decode("utf-8", "replace")  # a name may hold bytes that are no text
    return f"--- {shown} ---\n{text}"


def decoded(data: bytes, name: str) -> tuple[str, tuple[str, ...]]:
    """Return text without blank lines at its ends, and a remark for bad UTF-8; UsageError for what is no text."""
    text, notes = whole_text(data, name)
    text = text.strip("\n")
    return (text if text.strip() else ""), notes


def whole_text(data: bytes, name: str) -> tuple[str, tuple[str, ...]]:
    """Return all of a text, with its lines as they are numbered. Otherwise as `decoded`."""
    if (reason := not_text(data)) is not None:
        raise UsageError(f"{name} {reason}")
    encoding = "utf-16" if data.startswith(_UTF_16) else "utf-8-sig"  # a byte order mark is no part of the text
    notes: tuple[str, ...] = ()
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        text = data.decode(encoding, "replace")
        valid = "UTF-16" if data.startswith(_UTF_16) else "UTF-8"
        notes = (f"{name} is not valid {valid} (first at byte {error.start}): the invalid bytes are replaced.",)
    return text.replace("\r\n", "\n"), notes


def not_text(data: bytes) -> str | None:
    """Return why these bytes are no text, as a sentence's end after the file's name; None if they are text."""
    if data.startswith(_UTF_16):
        return None
    if data.startswith(b"%PDF-"):
        return "is a PDF: give it by itself, as a file or on standard input."
    if b"\0" in data:
        return "holds NUL bytes, so it is not text: convert it first."
    start = data[:_HEAD]
    odd = len(start.translate(None, delete=_WRITTEN))
    return "is not text, but something binary: convert it first." if odd * 20 > len(start) else None


def check_size(size: int, name: str) -> None:
    """Raise ContextOverflow beyond LIMIT bytes."""
    if size > LIMIT:
        raise ContextOverflow(
            f"{name} is longer than {LIMIT:,} bytes, which no model's context holds: give a part of it."
        )


def list_folder(root: Path, name: str) -> Tree:
    """Return the files of `root` worth reading, at any depth. Symbolic links are left out: they may lead anywhere.

    Inside a repository the choice is git's: what is tracked, and what is new and not ignored. Elsewhere hidden files,
    folders that builds fill, and with git what a .gitignore names, are left out, with a remark.
    Raises ContextOverflow for more than MOST_FILES, UsageError for a folder that cannot be read.
    """
    names = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if names is not None:
        inner = [one.rstrip("/") for one in names if _is_repository(root / one)]
        remarks = _left_out(inner, name, "is a repository of its own and", "are repositories of their own and")
        files = _regular(root, (root / one for one in names), name)
        return Tree(root, files, remarks, because=" that git does not ignore")
    unread: list[str] = []
    found = _regular(root, _walk(root, name, unread), name)
    says_so = any((folder / ".gitignore").exists() for folder in {root, *(one.parent for one in found)})
    ignored = _ignored(root) if says_so else frozenset()
    files = tuple(one for one in found if _composed(one.relative_to(root).as_posix()) not in ignored)
    note = f"git lists no files of {name}, so hidden files and {', '.join(sorted(_BUILDS))} are left out."
    remarks = (note, *_left_out(unread, name, "cannot be read and is", "cannot be read and are"))
    return Tree(root, files, remarks, because=" besides hidden ones and builds")


def _gather_folder(name: str, tree: Tree) -> Material:
    parts: list[str] = []
    notes, skipped, total = list(tree.notes), 0, 0
    for path in tree.files:
        shown = f"{name.rstrip('/')}/{path.relative_to(tree.root).as_posix()}"
        data = _read(path, shown, FOLDER_LIMIT)
        if not_text(data) is not None:
            skipped += 1
            continue
        total += len(data)
        if total > FOLDER_LIMIT:
            by_size = sorted(tree.files, key=lambda path: path.stat().st_size, reverse=True)
            texts = (one for one in by_size if not_text(_read(one, shown, _HEAD)) is None)
            named = ", ".join(path.relative_to(tree.root).as_posix() for path in islice(texts, 3))
            raise ContextOverflow(
                f"The text files of {name} are more than {FOLDER_LIMIT:,} bytes together (the largest: {named}): "
                "name the folders or files you mean."
            )
        text, remarks = decoded(data, shown)
        notes += remarks
        if text:
            parts.append(titled(shown, text))
    if skipped:
        notes.append(f"{skipped} file{'s' if skipped > 1 else ''} of {name} without text left out.")
    if not parts:
        raise UsageError(f"{name} holds no text files{tree.because}: name the files themselves.")
    return Material(name, "\n\n".join(parts), len(parts), tuple(notes))


def _ignored(root: Path) -> frozenset[str]:
    """Return the paths that a .gitignore names in a folder outside of every repository; none are known without git."""
    with TemporaryDirectory() as empty:
        repository = (f"--git-dir={empty}", f"--work-tree={root.absolute()}")
        _git(root, *repository, "init", "--quiet")
        found = _git(root, *repository, "ls-files", "-z", "--others", "--ignored", "--exclude-standard")
        return frozenset(map(_composed, found or ()))


def _composed(name: str) -> str:
    """Return a name in the form that git prints on a Mac, where a file may be stored in the other one."""
    return unicodedata.normalize("NFC", name)


def _git(root: Path, *arguments: str) -> list[str] | None:
    """Return the paths that git prints; None if it fails (there is no repository) or is not there."""
    try:
        if sys.platform == "darwin" and shutil.which("git") == "/usr/bin/git":
            # Without Apple's developer tools that is a stub, which opens a window that asks to install them.
            subprocess.run(["xcode-select", "-p"], capture_output=True, check=True)
        done = subprocess.run(
            # A repository may name a program of its own for fsmonitor; listing files must not run it.
            ["git", "-C", str(root), "-c", "core.fsmonitor=false", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=git_environ(),
            check=False,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    names = set(done.stdout.split(b"\0")) - {b""}  # a set: a conflict is listed thrice
    return None if done.returncode else [os.fsdecode(one) for one in names]


def _is_repository(folder: Path) -> bool:
    """Tell a folder that git lists as a whole: a repository within the repository, or a submodule that is here."""
    with suppress(OSError):  # no way in
        return (folder / ".git").exists() and not folder.is_symlink()
    return False


def _left_out(folders: Sequence[str], name: str, one: str, several: str) -> tuple[str, ...]:
    if not folders:
        return ()
    first = ", ".join(sorted(folders)[:3]) + (f" and {len(folders) - 3} more" if len(folders) > 3 else "")
    subject = f"1 folder of {name} {one}" if len(folders) == 1 else f"{len(folders)} folders of {name} {several}"
    return (f"{subject} left out: {first}.",)


def _walk(root: Path, name: str, unread: list[str]) -> Iterator[Path]:
    """Yield every file worth reading; folders that cannot be read are put into `unread`."""

    def refuse(error: OSError) -> None:
        if error.filename == str(root):
            raise _unreadable(name, error) from error
        unread.append(Path(error.filename).relative_to(root).as_posix())

    for folder, folders, files in os.walk(root, onerror=refuse):
        folders[:] = sorted(one for one in folders if not one.startswith(".") and one not in _BUILDS)
        yield from (Path(folder, one) for one in files if not one.startswith("."))


def _regular(root: Path, paths: Iterable[Path], name: str) -> tuple[Path, ...]:
    @cache
    def linked(folder: Path) -> bool:
        """Tell a folder below a link: git lists what it tracks there, whatever stands in its place."""
        return folder != root and (folder.is_symlink() or linked(folder.parent))

    regular: list[Path] = []
    for path in paths:
        with suppress(OSError):  # tracked, but deleted
            if stat.S_ISREG(path.lstat().st_mode) and not linked(path.parent):
                regular.append(path)
        if len(regular) > MOST_FILES:
            raise ContextOverflow(f"{name} holds more than {MOST_FILES} files: name the folders or files you mean.")
    return tuple(sorted(regular))


def _path(name: str) -> Path:
    if not name:  # would stand for the current folder; mostly a variable of a script that is not set
        raise UsageError("The name of a file is empty: give a file or folder, . for the current one.")
    try:
        return _expanded(name)
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"There is no home folder for {name}.") from error


def _expanded(name: str) -> Path:
    """Put a home folder for `~`, unless nobody has that home and something here is called so. Raises RuntimeError."""
    path = Path(name)
    try:
        return path.expanduser()
    except RuntimeError:
        if path.exists():
            return path
        raise


def _exists(name: str) -> bool:
    """Return whether a text names what is there; `/`, `~`, `.` and `..` alone are mostly said of something else."""
    with suppress(OSError, RuntimeError, ValueError):  # too long for a name, no such home, a NUL
        return bool(name.strip("/~.")) and _expanded(name).exists()
    return False


def _text_of(data: bytes, name: str) -> tuple[str, tuple[str, ...]]:
    check_size(len(data), name)
    return decoded(data, name)


def _read(path: Path, name: str, limit: int, *, media_limit: int | None = None) -> bytes:
    """Return at most one byte more than `limit`; `media_limit` counts for what begins as a medium or a PDF does.

    The file is opened once: a pipe gives its bytes but once.
    """
    try:
        with path.open("rb") as file:
            head = b"" if media_limit is None else file.read(HEAD)
            if media_limit is not None and begins_media(head):
                limit = media_limit
            return head + file.read(max(0, limit + 1 - len(head)))
    except FileNotFoundError as error:
        raise UsageError(f"There is no file {name}.") from error
    except IsADirectoryError as error:
        raise UsageError(f"{name} is a folder: give a text file.") from error
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: OSError | ValueError) -> UsageError:
    reason = error.strerror if isinstance(error, OSError) else None
    return UsageError(f"{name} cannot be read: {reason or error}.")
