"""`mlxmtp serve`: the port is opened first, then the model is read while requests wait."""

import asyncio
import logging
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import uvicorn
from h11 import LocalProtocolError

from mlxmtp.app.open import Opener
from mlxmtp.app.prompt_cache import PromptCache
from mlxmtp.app.worker import Worker
from mlxmtp.environment import server_key
from mlxmtp.errors import UsageError, sentence
from mlxmtp.files import expand_home, read_whole
from mlxmtp.limits import PARALLEL
from mlxmtp.serve.connections import TimedProtocol
from mlxmtp.serve.http import LOOPBACK, Door, origins_of
from mlxmtp.serve.models import Models, models_of
from mlxmtp.serve.routes import Limits, Routes
from mlxmtp.serve.scheduler import Scheduler
from mlxmtp.serve.service import Service
from mlxmtp.settings import Loaded, Settings

HOST, PORT, WAITING, HEARTBEAT = "127.0.0.1", 8765, 64, 10.0
_CONNECTIONS = 512
_IDLE = 30  # seconds for which a connection is kept: agents ask again on it when their tools have run
_PATIENCE = 5  # seconds that answers have to end when the server does
_SILENT, _WRITING = 1.0, 120.0  # seconds that the texts of a model may take to be written: unseen, and with a word
_SAVE_SECONDS = 60.0  # between two writings of what drafting has learned


@dataclass(frozen=True, slots=True)
class Options:
    """The address, who may ask, and how many may wait."""

    host: str = HOST
    port: int = PORT
    door: Door = field(default_factory=Door)
    waiting: int = WAITING
    keep_alive: float | None = None  # seconds without a request after which the model's memory is freed
    limits: Limits = field(default_factory=Limits)
    parallel: int = 1  # answers at a time
    fetches: bool = False  # files at addresses that requests name
    debug: bool = False  # failures are told with the place where they came from


def options_of(loaded: Loaded) -> Options:
    """Return what the settings say. Raises UsageError for a key file that cannot be read, or a missing key."""
    settings, key = loaded.settings, server_key()
    host = settings.host or HOST
    if settings.api_key_file is not None and (not key or loaded.origins["api_key_file"] == "flag"):
        try:
            key = read_whole(expand_home(settings.api_key_file)).decode().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            raise UsageError(f"The API key cannot be read from {settings.api_key_file}: {reason}.") from None
        if not key:
            raise UsageError(f"{settings.api_key_file} is empty: write the API key into it.")
    if host not in LOOPBACK and not key:
        raise UsageError(
            f"On {host} other machines can reach the server: set a key, with --api-key-file or MLXMTP_API_KEY."
        )
    door = Door(key or None, LOOPBACK | {host}, origins_of((settings.origins or "").split(",")))
    seconds = HEARTBEAT if settings.heartbeat is None else settings.heartbeat
    waiting = WAITING if settings.max_waiting is None else settings.max_waiting
    port = PORT if settings.port is None else settings.port
    keep_alive = None if settings.keep_alive is None else 60 * settings.keep_alive
    limits, parallel = Limits(heartbeat=seconds or None), settings.parallel or PARALLEL
    more = {"fetches": bool(settings.fetch_media), "debug": bool(settings.debug)}
    return Options(host, port, door, waiting, keep_alive, limits, parallel, **more)


class Server:
    """Models behind one port; `tell` gets a line when the server is ready, and one for every failure."""

    def __init__(self, models: Models, options: Options, tell: Callable[[str], None]) -> None:
        """Open the port. Raises UsageError if it is taken."""
        self._models, self._options, self._tell = models, options, tell
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((options.host, options.port))
            self._socket.listen()  # now: two that only bind a port with SO_REUSEADDR would both have it
        except (OSError, UnicodeError) as error:  # a name of an interface that is none may be either
            self._socket.close()
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            raise UsageError(
                f"{options.host}:{options.port} cannot be opened ({reason}): choose another --host or --port."
            ) from None
        self._uvicorn: uvicorn.Server | None = None
        self._writing: Future[None] | None = None  # of texts; done when nobody waits for it any more

    @property
    def url(self) -> str:
        host = f"[{self._options.host}]" if ":" in self._options.host else self._options.host
        return f"http://{host}:{self._socket.getsockname()[1]}"

    def run(self, defaults: dict[str, object]) -> None:
        """Serve until Ctrl-C or SIGTERM. Raises what reading the first model raised."""
        asyncio.run(self._serve(defaults))

    def stop(self) -> None:
        """End `run` when its answers are complete or a few seconds have passed; a second call does not wait.

        Nor does one while texts are written.
        """
        if self._writing is not None:
            with suppress(InvalidStateError):  # a third call
                self._writing.set_result(None)
        if self._uvicorn is not None:
            self._uvicorn.force_exit = self._uvicorn.should_exit
            self._uvicorn.should_exit = True

    async def _serve(self, defaults: dict[str, object]) -> None:
        worker = Worker(self._options.parallel)
        scheduler = Scheduler(worker, self._options.waiting, self._options.keep_alive, self._options.parallel)
        fetches = self._options.fetches
        service = Service(self._models, scheduler, defaults, report=self._report, fetches=fetches)
        app = Routes(service, self._options.limits).app(self._options.door)
        config = uvicorn.Config(
            app,
            http=TimedProtocol,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_CONNECTIONS,
            timeout_keep_alive=_IDLE,
            timeout_graceful_shutdown=_PATIENCE,
        )
        self._uvicorn = server = _Uvicorn(config)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, self.stop)
        log, told = logging.getLogger("uvicorn.error"), _ErrorLines(self._tell, self._report)
        log.addHandler(told)
        scheduler.start(self._models.first)
        watch = asyncio.create_task(self._watch(scheduler, server))
        keep = asyncio.create_task(_save_regularly(worker))
        try:
            await server.serve(sockets=[self._socket])
        finally:
            keep.cancel()
            await _end(server.server_state.tasks)
            scheduler.stop()
            log.removeHandler(told)
            if worker.model is not None:
                worker.model.save_learned()
                if worker.model.cache is not None:
                    await self._keep_texts(worker)
        if watch.done():
            watch.result()
        watch.cancel()

    async def _keep_texts(self, worker: Worker) -> None:
        """Free the model, which keeps its texts, and wait until they are written or somebody does not want to."""
        cache = None if worker.model is None else worker.model.cache
        self._writing = Future[None]()
        worker.unload()
        written, _ = waited = [asyncio.wrap_future(one) for one in (worker.ended(), self._writing)]
        done, _ = await asyncio.wait(waited, timeout=_SILENT, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            self._tell("Conversations are being written for --cache: Ctrl-C leaves them.")
            await asyncio.wait(waited, timeout=_WRITING, return_when=asyncio.FIRST_COMPLETED)
        if not written.done():
            if isinstance(cache, PromptCache):
                cache.remove_unfinished()
            self._tell("Not all conversations were written for --cache: what is missing has to be read anew.")
        for one in waited:
            one.cancel()

    def _report(self, error: Exception) -> None:
        """Tell of a failure that a request met."""
        if self._options.debug:
            self._tell("".join(traceback.format_exception(error)).rstrip())
        self._tell(sentence(error))

    async def _watch(self, scheduler: Scheduler, server: uvicorn.Server) -> None:
        """Say when the model is there. Raises what reading it raised, after the server has ended."""
        error = await scheduler.loaded()
        if server.should_exit:  # the port may be closed already
            return
        if error is None:
            first = self._models.first
            drafting = " with its drafter" if first.has_drafter else ""
            self._tell(f"mlxmtp serves {first.name}{drafting} on {self.url}")
            return
        server.should_exit = True
        raise error


def serve(opener: Opener, options: Options, settings: Settings, tell: Callable[[str], None]) -> None:
    """Serve the model that the settings mean. Raises ModelNotFound, LoadError, TooLarge, UsageError."""
    Server(models_of(opener, settings), options, tell).run(settings.of_answer())


async def _end(requests: Iterable[asyncio.Task[None]]) -> None:
    """Cancel the requests that are still answered when the server's patience is over: they give up their answers."""
    tasks = [*requests]
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=1.0)


async def _save_regularly(worker: Worker) -> None:
    while True:
        await asyncio.sleep(_SAVE_SECONDS)
        if worker.model is not None:
            worker.model.save_learned()


class _Uvicorn(uvicorn.Server):
    """Leaves signals alone: its own handling ends the process before what has to be kept is written."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _ErrorLines(logging.Handler):
    """Failures in requests, as a line each."""

    def __init__(self, tell: Callable[[str], None], report: Callable[[Exception], None]) -> None:
        super().__init__(logging.ERROR)
        self._tell, self._report = tell, report

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, LocalProtocolError):  # uvicorn has answered already: the client broke off HTTP itself
            return
        if isinstance(error, asyncio.CancelledError) or str(record.msg).startswith("Cancel "):
            return  # the server was told to end while it answered
        if isinstance(error, Exception):
            self._report(error)
        else:
            self._tell(record.getMessage())
