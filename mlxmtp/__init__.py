"""Gemma 4 with multi-token-prediction drafters on MLX.

>>> import mlxmtp
>>> model = mlxmtp.load("pocket")
>>> for event in model.stream([{"role": "user", "content": "What is a drafter?"}]):
...     if isinstance(event, mlxmtp.Text):
...         print(event.text, end="")

Importing the package costs nothing: every name below is imported when it is first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlxmtp.app.open import load as load
    from mlxmtp.decode.decoder import Round as Round
    from mlxmtp.engine.events import End as End
    from mlxmtp.engine.events import Text as Text
    from mlxmtp.engine.events import Thinking as Thinking
    from mlxmtp.engine.model import Model as Model
    from mlxmtp.engine.params import Params as Params
    from mlxmtp.engine.stats import Stats as Stats
    from mlxmtp.errors import ConfigError as ConfigError
    from mlxmtp.errors import ContextOverflow as ContextOverflow
    from mlxmtp.errors import LoadError as LoadError
    from mlxmtp.errors import MlxmtpError as MlxmtpError
    from mlxmtp.errors import ModelNotFound as ModelNotFound
    from mlxmtp.errors import UsageError as UsageError

__version__: str

_HOME = {
    "ConfigError": "mlxmtp.errors",
    "ContextOverflow": "mlxmtp.errors",
    "End": "mlxmtp.engine.events",
    "LoadError": "mlxmtp.errors",
    "MlxmtpError": "mlxmtp.errors",
    "Model": "mlxmtp.engine.model",
    "ModelNotFound": "mlxmtp.errors",
    "Params": "mlxmtp.engine.params",
    "Round": "mlxmtp.decode.decoder",
    "Stats": "mlxmtp.engine.stats",
    "Text": "mlxmtp.engine.events",
    "Thinking": "mlxmtp.engine.events",
    "UsageError": "mlxmtp.errors",
    "load": "mlxmtp.app.open",
}


class _OpenBlasFirst:
    """Puts OpenBLAS under MLX when that is first imported, by whatever module: afterwards it would do nothing."""

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        del path, target
        if name == "mlx.core":
            from mlxmtp.models import blas

            blas.load()


sys.meta_path.insert(0, _OpenBlasFirst())

__all__ = sorted(["__version__", *_HOME])  # noqa: PLE0605  (names from the table above)


def __getattr__(name: str) -> object:
    if name == "__version__":
        from mlxmtp.version import installed_version

        value: object = installed_version()
    elif name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'mlxmtp' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
