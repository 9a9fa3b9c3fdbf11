"""Values out of a request's JSON, checked where they are read; an error names the field as the client wrote it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mlxmtp.engine.calls import strict_json
from mlxmtp.limits import Range


class Refused(Exception):
    """A request that is not carried out: HTTP `status`, the field `param`, and a `code` that programs can compare."""

    def __init__(
        self, message: str, param: str | None = None, *, status: int = 400, code: str | None = None, retry: int = 0
    ) -> None:
        super().__init__(message)
        self.param, self.status, self.code, self.retry = param, status, code, retry


def read_json(body: bytes) -> dict[str, Any]:
    """Return the object that a body is. Raises Refused for anything else, NaN and absurd nesting among them."""
    try:
        value = strict_json(body)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Refused(f"The body is not JSON: {reason}.") from None
    if not isinstance(value, dict):
        raise Refused("The body must be a JSON object.")
    return value


class Fields:
    """An object of a request; `where` is its path, such as `messages[2].content[0]`. null is as if it was not there."""

    def __init__(self, table: Mapping[str, Any], where: str = "") -> None:
        self.table, self.where = table, where

    def path(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name

    def wrong(self, name: str, wanted: str) -> Refused:
        return Refused(f"{self.path(name)} must be {wanted}.", self.path(name), code="invalid_value")

    def has(self, name: str) -> bool:
        return self.table.get(name) is not None

    def text(self, name: str, default: str | None = None) -> str:
        """Return a text; without `default` it has to be there."""
        value = self.table.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.wrong(name, "a text")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.table.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def number(self, name: str, allowed: Range) -> float | None:
        """Return a number of the range, whole ones as int; None if there is none."""
        value = self.table.get(name)
        if value is None:
            return None
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or (allowed.whole and not whole) or not isinstance(value, int | float):
            raise self.wrong(name, str(allowed))
        value = int(value) if allowed.whole else value
        if value not in allowed:
            raise self.wrong(name, str(allowed))
        return value if allowed.whole else float(value)

    def choice(self, name: str, *allowed: str, default: str) -> str:
        value = self.table.get(name, default)
        value = default if value is None else value
        if value not in allowed:
            raise self.wrong(name, " or ".join([", ".join(allowed[:-1]), allowed[-1]]) if allowed[1:] else allowed[0])
        return str(value)

    def object(self, name: str) -> Fields | None:
        value = self.table.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return Fields(value, self.path(name))

    def objects(self, name: str) -> Iterator[Fields]:
        """Yield the objects of a list; nothing if it is not there."""
        value = self.table.get(name)
        if value is None:
            return
        if not isinstance(value, list):
            raise self.wrong(name, "a list")
        for index, item in enumerate(value):
            if not isinstance(item, dict):
                raise self.wrong(f"{name}[{index}]", "an object")
            yield Fields(item, self.path(f"{name}[{index}]"))

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of texts, or one text as such a list."""
        value = self.table.get(name)
        if value is None:
            return ()
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise self.wrong(name, "a text or a list of texts")
        return tuple(found)

    def refuse(self, *names: str, unless: tuple[Any, ...] = ()) -> None:
        """Refuse fields that are known, mean something, and are not honoured here; `unless`: values without effect."""
        for name in names:
            value = self.table.get(name)
            if value is None or value is False:
                continue
            if value is True or value not in ([], {}, "", *unless):  # True is 1 otherwise
                raise Refused(
                    f"{self.path(name)} is not supported here: leave it out.",
                    self.path(name),
                    code="unsupported_parameter",
                )
