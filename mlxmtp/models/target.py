"""The target network: Gemma 4's text model, arranged for a round of a few rows.

Weights, sanitizing and quantization are mlx-lm's (``mlx_lm.models.gemma4_text``); the forward pass is ours
(``block.py``, ``experts.py``), because a round of one to nine rows is bound by the number of operations and not by
arithmetic. Formulas are those of transformers ``models/gemma4/modeling_gemma4.py``;
``tests/models`` compares both.

Activations are [L, H]: one conversation, no batch axis.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import mlx.core as mx

from mlxmtp.models.config import ModelConfig
from mlxmtp.models.kv_cache import CacheSpec
from mlxmtp.models.kv_quant import Rows
from mlxmtp.models.layer import KV, Block, Rotary, Rotation
from mlxmtp.models.linear import Product
from mlxmtp.models.tensors import Packing


class View(Protocol):
    """What a pass sees of the K/V buffers, see ``cache.py``."""

    positions: mx.array  # [L]
    masks: dict[str, Any]

    def update(self, i: int, rows: mx.array) -> Rows: ...


class Target:
    """Gemma 4's text network. ``source`` is mlx-lm's ``gemma4_text.Model`` with its weights in place.

    ``packing``: how keys and values of full layers are kept (None: as they are computed).
    """

    def __init__(self, source: Any, config: ModelConfig, packing: Packing | None = None) -> None:
        self.config = config
        self._text, self._cap = source.model, source.final_logit_softcapping
        self._head = source.model.embed_tokens.as_linear if source.tie_word_embeddings else source.lm_head
        self._blocks = [Block(layer, self._text.config.rms_norm_eps) for layer in self._text.layers]
        self._own = sum(block.has_kv for block in self._blocks)
        self._rotary = {kind: Rotary(config, kind) for kind in dict.fromkeys(config.layer_types)}
        self.stores = {self._blocks[i].kind: i for i in range(self._own)}
        """Layer index of the K/V that the drafter and the K/V-sharing layers read, by kind."""
        self.dtype: mx.Dtype = self._text.norm.weight.dtype
        self._per_layer = self._text.hidden_size_per_layer_input
        if self._per_layer:
            self._project = Product(self._text.pop("per_layer_model_projection"))
        layers = {kind: self._blocks[i].attention for kind, i in self.stores.items()}
        self._rotary_own = {
            kind: Rotary(config, kind, (layer.heads + layer.kv_heads, layer.kv_heads)) for kind, layer in layers.items()
        }
        """For q, k and v side by side, as the layers with own K/V have them."""
        own = self._blocks[: self._own]
        self.cache_spec = CacheSpec(
            tuple(b.kind for b in own),
            tuple(b.attention.kv_heads for b in own),
            tuple(b.attention.head_dim for b in own),
            config.window,
            packing,
        )

    def arrays(self) -> list[Any]:
        """Everything derived from the weights, a list of arrays per layer, to be evaluated one by one at load."""
        return [*(block.arrays() for block in self._blocks), self._project.arrays() if self._per_layer else []]

    def embed(self, tokens: mx.array) -> mx.array:
        """Scaled embeddings [L, H] of ``tokens`` [L]: what the network and the drafter read."""
        return self._text.embed_tokens(tokens) * self._text.embed_scale

    def _per_layer_inputs(self, tokens: mx.array, h: mx.array) -> Sequence[mx.array | None]:
        """(norm(h W) + table[token]) / sqrt(2), one [L, P] per layer; None for models without."""
        if not self._per_layer:
            return [None] * len(self._blocks)
        text, shape = self._text, (len(tokens), len(self._blocks), self._per_layer)
        table = (text.embed_tokens_per_layer(tokens) * text.embed_tokens_per_layer_scale).reshape(shape)
        projected = (self._project(h) * text.per_layer_projection_scale).reshape(shape)
        mixed = (text.per_layer_projection_norm(projected) + table) * text.per_layer_input_scale
        return tuple(mx.split(mixed.reshape(len(tokens), -1), len(self._blocks), axis=-1))

    def hidden(self, tokens: mx.array, view: View, *, last_only: bool = False) -> mx.array:
        """Post-norm hidden states [L, H] of ``tokens`` [L]; writes their K/V through ``view``.

        ``last_only`` returns the last row [1, H] alone. Layers that share K/V then run on that row only: nothing
        reads their other rows, and in E2B and E4B they are more than half of the network.
        """
        h = self.embed(tokens)
        extras = self._per_layer_inputs(tokens, h)
        turns = {kind: rotary.at(view.positions) for kind, rotary in self._rotary.items()}
        own_turns = {kind: rotary.at(view.positions) for kind, rotary in self._rotary_own.items()}
        masks = view.masks
        stored: dict[str, KV] = {}
        for i, block in enumerate(self._blocks):
            if last_only and i == self._own:
                h, extras = h[-1:], [None if e is None else e[-1:] for e in extras]
                turns = {kind: turn.last() for kind, turn in turns.items()}
                masks = {kind: mask if isinstance(mask, str) else mask[-1:] for kind, mask in masks.items()}
            turn: Rotation = own_turns[block.kind] if i < self._own else turns[block.kind]
            kv = stored.get(block.kind) if i >= self._own else None
            h, stored[block.kind] = block(h, masks[block.kind], turn, kv=kv, view=view, i=i, extra=extras[i])
        return self._text.norm(h[-1:] if last_only else h)

    def logits(self, hidden: mx.array) -> mx.array:
        """Soft-capped logits [L, V] in float32 of post-norm hidden states [L, H]."""
        logits = self._head(hidden)
        return (logits if self._cap is None else mx.tanh(logits / self._cap) * self._cap).astype(mx.float32)
