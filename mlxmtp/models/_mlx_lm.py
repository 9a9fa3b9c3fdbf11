"""mlx-lm's Gemma 4 classes without mlx-lm's start-up cost.

``import mlx_lm`` runs a package file that imports transformers (1.3 to 2 seconds). Its model files need
none of that, so they are imported under a package object whose file has not been run; the object is taken
away again, and a later ``import mlx_lm`` elsewhere in the process works as usual. Measured: 0.15 s.
"""

import importlib
import importlib.util
import sys
from types import ModuleType


def _model_module(name: str) -> ModuleType:
    if "mlx_lm" in sys.modules:
        return importlib.import_module(f"mlx_lm.models.{name}")
    spec = importlib.util.find_spec("mlx_lm")
    if spec is None:
        raise ImportError("mlx-lm is not installed; run: pip install mlx-lm")
    sys.modules["mlx_lm"] = importlib.util.module_from_spec(spec)
    try:
        return importlib.import_module(f"mlx_lm.models.{name}")
    finally:
        del sys.modules["mlx_lm"]


gemma4 = _model_module("gemma4")
gemma4_text = _model_module("gemma4_text")
