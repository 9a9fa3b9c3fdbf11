"""Frameworks on the server at an address, each with a tool or a form: `python -m tests.serve.python_clients URL`.

What came of it is a line of JSON for each; a framework that is not installed has none. In a process of their own: they
take seconds to import, warn of each other, and look at the environment.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from pydantic import BaseModel


class City(BaseModel):
    """A city with its people."""

    name: str
    people: int


def weather(city: str) -> str:
    """Say how the weather is in a city."""
    return f"cold in {city}"


def langchain_openai(url: str) -> Any:
    messages_module, models = import_module("langchain_core.messages"), import_module("langchain_openai")
    model = models.ChatOpenAI(base_url=f"{url}/v1", api_key="none", model="fake", max_retries=0)
    tooled, messages = model.bind_tools([weather]), [messages_module.HumanMessage("Oslo?")]
    called = tooled.invoke(messages)
    [call] = called.tool_calls
    messages += [called, messages_module.ToolMessage(weather(**call["args"]), tool_call_id=call["id"])]
    pieces = list(tooled.stream(messages))
    form = model.with_structured_output(City, method="json_schema")
    return [call["args"], "".join(str(one.content) for one in pieces), form.invoke("A city").model_dump()]


def pydantic_ai(url: str) -> Any:
    providers, models = import_module("pydantic_ai.providers.openai"), import_module("pydantic_ai.models.openai")
    provider = providers.OpenAIProvider(base_url=f"{url}/v1", api_key="none")
    model = models.OpenAIChatModel("fake", provider=provider)
    library, found = import_module("pydantic_ai"), []
    for output in (City, library.NativeOutput(City)):  # as a call, and as a form beside the tool
        result = library.Agent(model, output_type=output, tools=[weather], retries=0).run_sync("Oslo?")
        found += [result.output.model_dump(), result.usage().input_tokens > 0]
    return found


def llm(url: str) -> Any:
    model = import_module("llm").get_model("mlxmtp")  # as `mlxmtp connect llm --write` has named it
    chain = model.chain("Oslo?", tools=[weather])
    form = model.prompt("A city", schema=City, stream=False)
    return [chain.text(), json.loads(form.text())]


def litellm(url: str) -> Any:
    library = import_module("litellm")
    about = {"model": "openai/fake", "api_base": f"{url}/v1", "api_key": "none"}
    answer = library.completion(messages=[{"role": "user", "content": "Hi"}], **about)
    pieces = library.completion(messages=[{"role": "user", "content": "Hi"}], stream=True, **about)
    return [answer.choices[0].message.content, "".join(one.choices[0].delta.content or "" for one in pieces)]


def instructor(url: str) -> Any:
    library = import_module("instructor")
    inner = import_module("openai").OpenAI(base_url=f"{url}/v1", api_key="none")
    client = library.from_openai(inner, mode=library.Mode.TOOLS)
    return client.chat.completions.create(
        model="fake", response_model=City, max_retries=0, messages=[{"role": "user", "content": "Hi"}]
    ).model_dump()


CLIENTS: list[Callable[[str], Any]] = [langchain_openai, pydantic_ai, llm, litellm, instructor]

if __name__ == "__main__":
    for client in CLIENTS:
        if find_spec(client.__name__) is not None:
            sys.stdout.write(json.dumps({client.__name__: client(sys.argv[1])}) + "\n")
            sys.stdout.flush()
