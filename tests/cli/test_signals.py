"""Ctrl-C while one answer comes: the last words are said once, and never in the middle of something."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import suppress
from threading import Thread
from types import SimpleNamespace
from typing import NoReturn

import pytest

from mlxmtp.cli.terminal import signals
from mlxmtp.cli.terminal.signals import LastWords, interrupts


class Ended(BaseException):
    pass


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    def end(number: int) -> None:
        raise Ended(number)

    monkeypatch.setattr(signals, "end", end)
    words: list[str] = []
    yield words
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_while_the_model_works_ends_there(said: list[str]) -> None:
    last_words = LastWords(lambda: said.append("bye"))
    with suppress(Ended), interrupts(last_words), last_words:
        signal.raise_signal(signal.SIGINT)
        said.append("never")
    assert said == ["bye"]


def test_ctrl_c_while_something_is_shown_waits_for_its_end(said: list[str]) -> None:
    last_words = LastWords(lambda: said.append("bye"))
    with suppress(Ended), interrupts(last_words):
        with last_words:
            said.append("model")
        signal.raise_signal(signal.SIGINT)
        said.append("shown")
        with last_words:
            said.append("never")
    assert said == ["model", "shown", "bye"]


def test_a_second_ctrl_c_waits_for_nothing(said: list[str]) -> None:
    last_words = LastWords(lambda: said.append("bye"))
    with suppress(Ended), interrupts(last_words):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        said.append("never")
    assert said == []


def test_a_compiler_of_kernels_that_heard_ctrl_c_first_is_no_failure(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    last_words = LastWords(lambda: said.append("bye"))
    came_late = SimpleNamespace(sleep=lambda _: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(signals, "time", came_late)
    with pytest.raises(Ended), interrupts(last_words), last_words:
        raise RuntimeError("the compiler has ended")
    monkeypatch.setattr(signals, "time", SimpleNamespace(sleep=lambda _: None))
    with pytest.raises(RuntimeError, match="out of memory"), interrupts(last_words), LastWords(lambda: None):
        raise RuntimeError("out of memory")
    assert said == ["bye"]


def test_last_words_wait_for_a_stream_that_is_being_written_to(said: list[str]) -> None:
    last_words = LastWords(lambda: said.append("bye"))
    with suppress(Ended), interrupts(last_words), last_words:
        with signals.writing:
            signal.raise_signal(signal.SIGINT)
            said.append("the line")
        said.append("never")
    assert said == ["the line", "bye"]


class Waits(BaseException):
    pass


def hear_beside(last_words: LastWords) -> None:
    def hear() -> None:
        with suppress(Ended):
            last_words(beside=True)

    thread = Thread(target=hear)
    thread.start()
    thread.join()


def test_a_ctrl_c_that_another_thread_has_heard_is_no_second_one(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleep(_: float) -> NoReturn:
        raise Waits

    monkeypatch.setattr(signals, "time", SimpleNamespace(sleep=sleep))
    last_words = LastWords(lambda: said.append("bye"))
    with interrupts(last_words), last_words:
        hear_beside(last_words)
        with pytest.raises(Waits):  # the main thread hears the same
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(Ended):
            signal.raise_signal(signal.SIGINT)
    assert said == ["bye"]


def test_what_another_thread_has_heard_waits_for_a_stream_that_is_being_written_to(said: list[str]) -> None:
    last_words = LastWords(lambda: said.append("bye"))
    with suppress(Ended), interrupts(last_words), last_words:
        with signals.writing:
            hear_beside(last_words)
            signal.raise_signal(signal.SIGINT)
            said.append("the line")
        said.append("never")
    assert said == ["the line", "bye"]
