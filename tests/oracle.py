"""mlx-lm's own networks: what ours must agree with. The package itself does not import mlx-lm."""

from __future__ import annotations

from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models import gemma4, gemma4_text

from mlxmtp.models.config import ModelConfig


def build_target(config: ModelConfig) -> Any:
    """mlx-lm's network for ``config``, weights not in place."""
    return gemma4.Model(gemma4.ModelArgs(text_config=dict(config.text), vocab_size=config.vocab_size))


class DrafterWeights(nn.Module):
    """The parameter tree of a published drafter, names as in its file; the layers are mlx-lm's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        args = gemma4_text.ModelArgs.from_dict(dict(config.text))
        width, backbone = args.hidden_size, int(config.raw["backbone_hidden_size"])
        self.pre_projection = nn.Linear(2 * backbone, width, bias=False)
        self.post_projection = nn.Linear(width, backbone, bias=False)
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(args.vocab_size, width)
        self.model.layers = [gemma4_text.DecoderLayer(args, i) for i in range(args.num_hidden_layers)]
        self.model.norm = nn.RMSNorm(width, eps=args.rms_norm_eps)
        if config.raw.get("use_ordered_embeddings"):
            self.masked_embedding = nn.Module()
            self.masked_embedding.centroids = nn.Linear(width, int(config.raw["num_centroids"]), bias=False)
            self.masked_embedding.token_ordering = mx.zeros((args.vocab_size,), mx.int64)


def parameters(module: nn.Module) -> list[tuple[str, mx.array]]:
    """All arrays of a module with their names."""
    return cast("list[tuple[str, mx.array]]", tree_flatten(module.parameters()))


__all__ = ["DrafterWeights", "build_target", "gemma4_text", "parameters"]
