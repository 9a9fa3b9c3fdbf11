"""Requests to the hub: plain HTTP with ranges, as neither the client's own download nor Xet continues a file."""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar
from urllib.parse import quote

import httpx2
from huggingface_hub import __version__ as client_version
from huggingface_hub import constants, errors, get_session, get_token
from huggingface_hub.utils import hf_raise_for_status, validate_repo_id

from mlxmtp.errors import DownloadError, MlxmtpError, ModelNotFound
from mlxmtp.version import installed_version

WAITS = (0.2, 1.0, 2.0, 4.0, 8.0)  # seconds before each attempt when nothing has arrived since the last one
LONGEST_WAIT = 60.0  # seconds that the hub may ask for (Retry-After)
_BUSY = (408, 429, 500, 502, 503, 504)
_GO_ON = "What has arrived is kept: run the same command again to go on."

TransferError = (errors.HfHubHTTPError, httpx2.RequestError, errors.OfflineModeIsEnabled)
"""Raised by requests; `Patience` says which are worth another attempt, `explain` makes sentences of them."""
_NO_SESSION = (ImportError, ValueError, OSError, httpx2.InvalidURL)
"""Raised before any request: proxies and files of certificates of the environment that cannot be used, addresses."""

T = TypeVar("T")

OnWait = Callable[[str, float], None]  # takes a reason and the seconds until the next attempt
# A name of a file below a repository, and a hash: both become paths of the cache, and a mirror is not to be trusted.
_NAME = re.compile(r"(?!\.{1,2}(?:/|$))[^/\\\0]+(?:/(?!\.{1,2}(?:/|$))[^/\\\0]+)*")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository. `etag` names its blob in the cache: the sha256 if `lfs`, else git's blob id."""

    name: str
    size: int
    etag: str
    lfs: bool


@dataclass(frozen=True, slots=True)
class RemoteRepo:
    """The files of a repository at one commit, by name."""

    repo: str
    commit: str
    files: Mapping[str, RemoteFile]


class Patience:
    """A limit to attempts in a row without progress; `tries` is set to 0 when something has arrived."""

    def __init__(self, on_wait: OnWait | None = None, waits: Sequence[float] | None = None) -> None:
        self.tries = 0
        self._on_wait, self._waits = on_wait, WAITS if waits is None else waits

    def wait_after(self, error: Exception) -> bool:
        """Sleep and return True if another attempt makes sense after `error`."""
        if isinstance(error, errors.HfHubHTTPError) and error.response.status_code in _BUSY:
            asked = error.response.headers.get("Retry-After", "").strip()
            reason = f"the hub answers {error.response.status_code}"
        elif isinstance(error, httpx2.TransportError):
            asked, reason = "", _reason(error)
        else:
            return False
        if self.tries >= len(self._waits):
            return False
        pause = float(asked) if asked.isdecimal() else self._waits[self.tries]
        if pause > LONGEST_WAIT:
            return False
        self.tries += 1
        if self._on_wait is not None:
            self._on_wait(reason, pause)
        time.sleep(pause)
        return True


def offline() -> bool:
    """Return True if HF_HUB_OFFLINE forbids the network."""
    return bool(constants.is_offline_mode())


def endpoint() -> str:
    """Return the address of the hub in use."""
    return str(constants.ENDPOINT)


def look_up(repo: str, revision: str | None = None, *, on_wait: OnWait | None = None) -> RemoteRepo:
    """Return the files of `repo` at a branch, tag or commit (None: the newest). Raises ModelNotFound, DownloadError."""
    try:
        validate_repo_id(repo)
    except errors.HFValidationError as error:
        raise ModelNotFound(f"'{repo}' is not the name of a repository: write it as org/repo.") from error
    at = "" if revision is None else f"/revision/{quote(revision, safe='')}"

    def ask() -> httpx2.Response:
        url, timeout = f"{endpoint()}/api/models/{repo}{at}", constants.HF_HUB_DOWNLOAD_TIMEOUT
        answer = _session().get(url, params={"blobs": True}, headers=_headers(), timeout=timeout, follow_redirects=True)
        hf_raise_for_status(answer)
        return answer

    # Renamed repositories are redirected, and another case is forgiven: `id` is the name they have now.
    # A hub that cannot be reached at the start should be heard of soon.
    response = _patiently(ask, Patience(on_wait, WAITS[:2]), repo, revision)
    files: dict[str, RemoteFile] = {}
    try:
        found = response.json()
        if not _HASH.fullmatch(str(found["sha"])):
            raise ValueError("the answer names no commit")
        for item in found["siblings"]:
            name, lfs = item["rfilename"], item.get("lfs")
            content = item.get("blobId") if lfs is None else str(lfs["sha256"])
            if not _NAME.fullmatch(name) or not (content is None or _HASH.fullmatch(str(content))):
                raise ValueError(f"it has a file of the name {name!r:.100}")
            if lfs is not None:
                files[name] = RemoteFile(name, int(lfs["size"]), str(content), lfs=True)
            elif content and item.get("size") is not None:
                files[name] = RemoteFile(name, int(item["size"]), str(content), lfs=False)
        return RemoteRepo(str(found.get("id") or repo), str(found["sha"]), files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        said = f"{endpoint()} does not answer like the Hugging Face hub ({error}). Check HF_ENDPOINT."
        raise DownloadError(said) from error


def _session() -> httpx2.Client:
    """Return what makes requests. Raises DownloadError where the environment says what cannot be used."""
    try:
        httpx2.URL(endpoint())
        return get_session()
    except _NO_SESSION as error:
        raise DownloadError(
            f"The hub at {endpoint()} cannot be asked ({_reason(error)}). Check HF_ENDPOINT, SSL_CERT_FILE and the "
            "variables of proxies, of which those for SOCKS take `pip install socksio`."
        ) from error


def _headers() -> dict[str, str]:
    """Return who asks, and the token; the client's own headers also tell which program runs it, which it looks up."""
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    headers = {"User-Agent": f"mlxmtp/{installed_version()}; hf_hub/{client_version}"}
    return headers if token is None else {**headers, "Authorization": f"Bearer {token}"}


def read_file(repo: str, commit: str, name: str, *, on_wait: OnWait | None = None) -> bytes:
    """Return the bytes of a small file. Raises ModelNotFound, DownloadError."""

    def read() -> bytes:
        with open_file(repo, commit, name, 0) as (_, pieces):
            return b"".join(pieces)

    return _patiently(read, Patience(on_wait), repo, commit)


def _patiently(request: Callable[[], T], patience: Patience, repo: str, revision: str | None) -> T:
    while True:
        try:
            return request()
        except TransferError as error:
            if not patience.wait_after(error):
                raise explain(error, repo, revision) from error


def read_part(repo: str, commit: str, name: str, start: int, count: int, *, on_wait: OnWait | None = None) -> bytes:
    """Return ``count`` bytes of a file from byte ``start`` on. Raises ModelNotFound, DownloadError."""

    def read() -> bytes:
        found = bytearray()
        with open_file(repo, commit, name, start, start + count) as (begins, pieces):
            for piece in pieces:
                found += piece
                if begins + len(found) >= start + count:
                    break
        return bytes(memoryview(found)[start - begins :][:count])

    return _patiently(read, Patience(on_wait), repo, commit)


@contextmanager
def open_file(
    repo: str, commit: str, name: str, start: int, end: int | None = None
) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Yield where the bytes of a file start (0 if the server ignores ranges), and pieces. Raises `TransferError`."""
    headers = {**_headers(), "Accept-Encoding": "identity"}  # ranges of compressed text mean nothing
    if start or end is not None:
        headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
    url, timeout = f"{endpoint()}/{repo}/resolve/{commit}/{quote(name)}", constants.HF_HUB_DOWNLOAD_TIMEOUT
    # Redirects are followed anew every time: the address of the bytes behind them expires.
    with _session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
        if start and response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            yield start, iter(())
            return
        hf_raise_for_status(response)
        if response.status_code != HTTPStatus.PARTIAL_CONTENT:
            yield 0, response.iter_raw()
            return
        said = response.headers.get("Content-Range", "")
        if (parts := re.match(r"(?:bytes )?(\d+)-", said)) is None:
            raise httpx2.RemoteProtocolError(f"Content-Range is {said!r}")
        yield int(parts[1]), response.iter_raw()


def explain(error: Exception, repo: str, revision: str | None = None) -> MlxmtpError:
    """Return an error with one sentence and the next step for a `TransferError`."""
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelNotFound(f"{repo} has no revision '{revision}'. Leave out --revision for the newest one.")
    if isinstance(error, errors.RepositoryNotFoundError) and not isinstance(error, errors.GatedRepoError):
        said = f"There is no {repo} on the hub, or it is private. "
        return ModelNotFound(f"{said}Check the name, or run `hf auth login` or set HF_TOKEN.")
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code  # a plain number: proxies answer with some that no standard has
        sentences: dict[int, str] = {
            HTTPStatus.UNAUTHORIZED: "The hub refuses the token. Run `hf auth login`, or set HF_TOKEN to a valid one.",
            HTTPStatus.FORBIDDEN: f"The token may not read {repo}. "
            "Give it read access, or set HF_TOKEN to another one.",
            HTTPStatus.TOO_MANY_REQUESTS: f"The hub limits requests from here. Wait some minutes. {_GO_ON}",
        }
        said = sentences.get(status, f"The hub answers {status} for {repo}. Try later. {_GO_ON}")
        if isinstance(error, errors.GatedRepoError):
            said = f"{repo} is gated. Ask for access at {endpoint()}/{repo}, then run `hf auth login` or set HF_TOKEN."
        elif isinstance(error, errors.EntryNotFoundError):
            said = f"A file of {repo} is listed but not there. Try another --revision."
    elif isinstance(error, errors.OfflineModeIsEnabled):
        said = f"HF_HUB_OFFLINE is set, so {repo} cannot be looked up. Unset it and run again."
    elif isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        said = f"The hub at {endpoint()} cannot be reached ({_reason(error)}). "
        said += f"Check the network, a proxy, or HF_ENDPOINT. {_GO_ON}"
    elif not isinstance(error, httpx2.TransportError):  # redirects in a circle, damaged compression
        said = f"{endpoint()} does not answer like the Hugging Face hub ({_reason(error)}). "
        said += "Check the network, a proxy, or HF_ENDPOINT."
    else:
        said = f"The connection to the hub broke down several times ({_reason(error)}). {_GO_ON}"
    return DownloadError(said)


def _reason(error: Exception) -> str:
    if isinstance(error, httpx2.TimeoutException):
        return "no answer in time"
    said = str(error).strip().rstrip(".")
    return said.partition("] ")[2] or said if said.startswith("[Errno") else said or type(error).__name__


def reach(seconds: float) -> str | None:
    """Return why the hub cannot be reached within `seconds`; None if it answers."""
    try:
        get_session().head(f"{endpoint()}/api/models", timeout=seconds, follow_redirects=False)
    except (httpx2.HTTPError, *_NO_SESSION) as error:
        return _reason(error)
    return None


def has_token() -> bool:
    """Return True if requests carry a token."""
    return get_token() is not None
