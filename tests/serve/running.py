"""A server on a free port of this machine, with a decoder that says what is queued."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from threading import Event, Thread
from typing import Any

from mlxmtp.app.open import Checkpoint, LearnedDrafting, OpenModel, TextStore
from mlxmtp.engine.model import Model
from mlxmtp.engine.tokenizer import Tokenizer
from mlxmtp.models.config import read_config
from mlxmtp.serve.models import Models, Served
from mlxmtp.serve.server import Options, Server
from tests.fake_decoder import FakeDecoder
from tests.text_checkpoint import write_text_checkpoint

# Written for these tests: declarations, calls and results in the shape that facts about Gemma's format describe.
TEMPLATE = """\
{%- macro value(it) -%}
{%- if it is none -%}null
{%- elif it is string -%}<|"|>{{ it }}<|"|>
{%- elif it is boolean -%}{{ 'true' if it else 'false' }}
{%- elif it is mapping -%}{{ '{' }}{%- for key, one in it | dictsort -%}
{{ key }}:{{ value(one) }}{{ ',' if not loop.last }}{%- endfor -%}{{ '}' }}
{%- elif it is sequence -%}[{%- for one in it -%}{{ value(one) }}{{ ',' if not loop.last }}{%- endfor -%}]
{%- else -%}{{ it }}{%- endif -%}
{%- endmacro -%}
{{ bos_token }}
{%- set system = messages and messages[0].role == 'system' -%}
{%- if system or tools or enable_thinking -%}
<|turn>system
{% if enable_thinking %}<|think|>
{% endif %}{{ messages[0].content | trim if system }}
{%- for tool in tools or [] -%}
<|tool>declaration:{{ tool.function.name }}{{ value(tool.function.parameters) }}<tool|>
{%- endfor -%}<turn|>
{% endif %}
{%- set state = namespace(before='') -%}
{%- for message in (messages[1:] if system else messages) -%}
{%- if message.role == 'tool' -%}
<|tool_response>response:{{ message.name }}{value:{{ value(message.content) }}}<tool_response|>
{%- else -%}
{%- if not (message.role == 'assistant' and state.before in ('assistant', 'tool')) -%}
{%- set role = 'model' if message.role == 'assistant' else message.role -%}
{{ '<turn|>\n' if state.before in ('assistant', 'tool') }}<|turn>{{ role }}
{% endif -%}
{%- if message.reasoning and message.tool_calls -%}<|channel>thought
{{ message.reasoning }}
<channel|>{%- endif -%}
{%- for call in message.tool_calls or [] -%}
<|tool_call>call:{{ call.function.name }}{{ value(call.function.arguments) }}<tool_call|>
{%- endfor -%}
{{ message.content | trim }}{{ '<turn|>\n' if message.role != 'assistant' }}
{%- endif -%}
{%- set state.before = message.role -%}
{%- endfor -%}
{%- if state.before != 'tool' -%}
{{ '<turn|>\n' if state.before == 'assistant' }}<|turn>model
{% endif -%}
"""

CALL = "<|tool_call>call:{}<tool_call|>"
Json = dict[str, Any]


def call(written: str) -> str:
    """A call as the model writes it; `"` stands for the mark of a string."""
    return CALL.format(written.replace('"', '<|"|>'))


class Running:
    """The server under test. `say` queues answers; `post` and `get` ask it."""

    def __init__(
        self,
        folder: Path,
        options: Options,
        *,
        context: int,
        loads: Event | None,
        template: str,
        others: Mapping[str, Callable[[], Served]] | None,
        cache: TextStore | None,
        defaults: Json,
    ) -> None:
        folder = write_text_checkpoint(folder / "model", context=context, template=template)
        self.opens_thoughts = "'tool_response' and enable_thinking" in template  # in the prompt, after a result
        self.tokenizer = Tokenizer.load(folder)
        self.decoder = FakeDecoder()
        self.told: list[str] = []
        self.model = model = Model(self.decoder, read_config(folder), self.tokenizer)
        opened = OpenModel(model, Checkpoint("fake", folder), None, LearnedDrafting(folder / "data", None), cache=cache)

        def read(_: Tokenizer) -> OpenModel:
            if loads is not None:
                loads.wait(30)
            return opened

        names = frozenset({"fake", "default"})
        sides: Any = {"read": read, "read_tokenizer": lambda: self.tokenizer, "media": model.media}
        self.served = served = Served("fake", names, context, has_drafter=False, **sides)
        self.server = Server(Models(served, others), options, self.told.append)
        self._thread = Thread(target=self.server.run, args=(defaults,))
        self._thread.start()
        self.port = int(self.server.url.rpartition(":")[2])
        self._connect()

    def say(self, *answers: str) -> None:
        for answer in answers:
            self.decoder.enqueue(self.tokenizer.encode(answer))

    def prompt(self, number: int = -1) -> str:
        """The prompt of a request as text, special tokens spelled."""
        ids = self.decoder.requests[number].prompt
        spelled = {self.tokenizer.special_id(mark): mark for mark in self.tokenizer._specials}
        detokenizer = self.tokenizer.detokenizer()
        return "".join(spelled.get(token) or detokenizer.add(token) for token in ids)

    def request(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method, path, data, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        answer = response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        connection.close()
        return answer

    def get(self, path: str, **headers: str) -> Json:
        status, _, data = self.request("GET", path, **headers)
        return {"status": status, **json.loads(data)}

    def post(self, path: str, **body: Any) -> Json:
        """The JSON of an answer, with the HTTP status in `http`."""
        status, _, data = self.request("POST", path, body)
        return {"http": status, **json.loads(data)}

    def events(self, path: str, **body: Any) -> list[Json]:
        """The events of a stream; `[DONE]` and comments are left out, an event's name must be its type."""
        status, headers, data = self.request("POST", path, {**body, "stream": True})
        assert status == 200, data
        assert headers["content-type"].startswith("text/event-stream")
        found = []
        for block in data.decode().split("\n\n"):
            lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            if "data" in lines and lines["data"] != "[DONE]":
                found.append(json.loads(lines["data"]))
                assert lines.get("event", found[-1].get("type")) == found[-1].get("type")
        return found

    def ended(self, seconds: float) -> bool:
        """Return whether the server ends within that time."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def stop(self) -> None:
        self.server.stop()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _connect(self) -> None:
        for _ in range(500):
            try:
                self.request("GET", "/health")
            except ConnectionRefusedError:
                time.sleep(0.02)
            else:
                return
        raise AssertionError("the server does not listen")


@contextmanager
def running(
    folder: Path,
    options: Options | None = None,
    *,
    context: int = 4096,
    loads: Event | None = None,
    template: str = TEMPLATE,
    others: Mapping[str, Callable[[], Served]] | None = None,
    cache: TextStore | None = None,
    defaults: Json | None = None,
) -> Iterator[Running]:
    options, defaults = options or Options(port=0), {"max_tokens": 4096} if defaults is None else defaults
    about: Any = {"context": context, "loads": loads, "template": template, "others": others, "cache": cache}
    server = Running(folder, options, **about, defaults=defaults)
    try:
        yield server
    finally:
        if loads is not None:
            loads.set()
        server.stop()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
