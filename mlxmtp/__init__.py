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

TYPE_CHECKING = False  # as checkers know it; importing typing takes time in which Ctrl-C still has Python's words
if TYPE_CHECKING:
    from typing import Any

    from mlxmtp.app.open import load
    from mlxmtp.decode.round import Round
    from mlxmtp.engine.constraint import Constraint
    from mlxmtp.engine.events import Call, End, Text, Thinking
    from mlxmtp.engine.functions import declare
    from mlxmtp.engine.model import Model
    from mlxmtp.engine.params import Params
    from mlxmtp.engine.stats import Stats
    from mlxmtp.errors import ConfigError, ContextOverflow, LoadError, MlxmtpError, ModelNotFound, UsageError

__all__ = [
    "Call", "ConfigError", "Constraint", "ContextOverflow", "End", "LoadError", "MlxmtpError", "Model",
    "ModelNotFound", "Params", "Round", "Stats", "Text", "Thinking", "UsageError", "__version__", "declare", "load",
]  # fmt: skip

__version__: str

_HOMES = {
    "app.open": ("load",),
    "decode.round": ("Round",),
    "engine.constraint": ("Constraint",),
    "engine.events": ("Call", "End", "Text", "Thinking"),
    "engine.functions": ("declare",),
    "engine.model": ("Model",),
    "engine.params": ("Params",),
    "engine.stats": ("Stats",),
}  # the others are in `errors`


class _OpenBlasFirst:
    """Puts OpenBLAS under MLX when that is first imported, by whatever module: afterwards it would do nothing.

    Finders are asked under the import lock of all threads: to import something there, which another thread is just
    importing, is to wait for ever. So it is done a step later, when the module is made.
    """

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != "mlx.core":
            return None
        from _frozen_importlib_external import PathFinder  # always there

        spec = PathFinder.find_spec(name, path, target)
        loader: Any = None if spec is None else spec.loader
        if loader is not None:
            create = loader.create_module

            def create_module(spec: Any) -> Any:
                from mlxmtp.models import blas

                blas.load()
                return create(spec)

            loader.create_module = create_module
        return spec


sys.meta_path.insert(0, _OpenBlasFirst())


def __getattr__(name: str) -> object:
    if name == "__version__":
        from mlxmtp.version import installed_version

        value: object = installed_version()
    elif name in __all__:
        from importlib import import_module

        home = next((module for module, names in _HOMES.items() if name in names), "errors")
        value = getattr(import_module(f"mlxmtp.{home}"), name)
    else:
        raise AttributeError(f"module 'mlxmtp' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
