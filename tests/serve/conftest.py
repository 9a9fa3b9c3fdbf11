from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serve.running import Running, running


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server for a whole file of tests: each must take what it queues."""
    with running(tmp_path_factory.mktemp("serve")) as server:
        yield server
