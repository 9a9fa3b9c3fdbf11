"""The target network: Gemma 4's text model, arranged for a round of a few rows, which the number of operations bounds.

Formulas: transformers ``models/gemma4/modeling_gemma4.py``. Activations are [L, H]: one conversation, no batch axis.
"""

from collections.abc import Sequence

import mlx.core as mx

from mlxmtp.models.config import ModelConfig
from mlxmtp.models.kv_cache import CacheSpec
from mlxmtp.models.layer import KV, Layer, Rotary, View, begin, following_norms
from mlxmtp.models.linear import Linear, Weights
from mlxmtp.models.tensors import Quantization, own_layers

NEVER = -1e9
"""Added to the logits of suppressed tokens: far below every logit, and still a number."""


class Target:
    """Gemma 4's text network; ``kv``: how full layers store keys and values (None: as they are computed)."""

    def __init__(self, weights: Weights, config: ModelConfig, kv: Quantization | None = None) -> None:
        text, inner = config.text, weights.below("language_model.model")
        self.config = config
        self._own = own_layers(config)
        self.layers = [
            Layer(inner.below(f"layers.{i}"), config, i, own=i < self._own) for i in range(len(config.layer_types))
        ]
        own = self.layers[: self._own]
        self.stores = {layer.kind: i for i, layer in enumerate(own)}
        """Layer index of the K/V that the drafter and the K/V-sharing layers read, by kind."""
        self._rotary = {kind: Rotary(config, kind) for kind in dict.fromkeys(config.layer_types)}
        # For q, k and v side by side, as the layers with own K/V have them.
        sources = {kind: own[i].attention for kind, i in self.stores.items()}
        self._rotary_own = {
            kind: Rotary(config, kind, (one.heads + one.kv_heads, one.kv_heads)) for kind, one in sources.items()
        }
        self._table, self._norm = inner.matrix("embed_tokens"), inner.vector("norm.weight")
        self._head = self._table if text.get("tie_word_embeddings", True) else weights.matrix("language_model.lm_head")
        self._cap = text.get("final_logit_softcapping", 30.0)
        self._suppressed: mx.array | None = None
        if suppressed := config.suppressed_ids:  # to be added to logits [V]
            self._suppressed = mx.zeros((config.vocab_size,)).at[mx.array(suppressed)].add(NEVER)
        self.dtype: mx.Dtype = self._norm.dtype
        self._per_layer = int(text.get("hidden_size_per_layer_input") or 0)
        if self._per_layer:
            self._extra_table = inner.matrix("embed_tokens_per_layer")
            self._project = Linear(inner.matrix("per_layer_model_projection"))
            self._extra_norm = inner.vector("per_layer_projection_norm.weight")
        self.cache_spec = CacheSpec(
            tuple(layer.kind for layer in own),
            tuple(layer.attention.kv_heads for layer in own),
            tuple(layer.attention.head_dim for layer in own),
            config.window,
            kv,
        )

    def embed(self, tokens: mx.array) -> mx.array:
        """Scaled embeddings [L, H] of ``tokens`` [L]: what the network and the drafter read."""
        return self._table.rows(tokens, self.dtype) * self.config.hidden_size**0.5

    def hidden(
        self, tokens: mx.array, view: View, *, last_only: bool = False, embeddings: mx.array | None = None
    ) -> mx.array:
        """Post-norm hidden states [L, H] of ``tokens`` [L]; writes their K/V through ``view``.

        ``embeddings`` [L, H]: what is read instead of the tokens' own; rows of images and audio have token 0.
        ``last_only`` returns the last row [1, H] alone. Layers that share K/V then run on that row only: nothing
        reads their other rows, and in E2B and E4B they are more than half of the network.
        """
        embedded = self.embed(tokens) if embeddings is None else embeddings
        extras, state = self._per_layer_inputs(tokens, embedded), begin(embedded, self.layers, self.config.eps)
        following = following_norms(self.layers, self._norm)
        turns = {kind: rotary.at(view.positions) for kind, rotary in self._rotary.items()}
        own_turns = {kind: rotary.at(view.positions) for kind, rotary in self._rotary_own.items()}
        masks = view.masks
        stored: dict[str, KV] = {}
        for i, layer in enumerate(self.layers):
            if last_only and i == self._own:
                state, extras = state.last(), [None if e is None else e[-1:] for e in extras]
                turns = {kind: turn.last() for kind, turn in turns.items()}
                masks = {kind: mask if isinstance(mask, str) else mask[-1:] for kind, mask in masks.items()}
            kind = layer.kind
            turn, kv = (own_turns[kind], None) if i < self._own else (turns[kind], stored[kind])
            about = following[i], masks[kind], turn
            state, stored[kind] = layer(state, *about, kv=kv, view=view, extra=extras[i])
        return state.normed[-1:] if last_only else state.normed

    def logits(self, hidden: mx.array) -> mx.array:
        """Soft-capped logits [L, V] in float32 of post-norm hidden states [L, H]; suppressed tokens never win.

        Capped in float32: in 16 bits (as transformers and mlx-lm do it) the cap makes neighbouring logits equal.
        """
        logits = self._head.project(hidden).astype(mx.float32)
        logits = logits if self._cap is None else mx.tanh(logits / self._cap) * self._cap
        return logits if self._suppressed is None else logits + self._suppressed

    def _per_layer_inputs(self, tokens: mx.array, h: mx.array) -> Sequence[mx.array | None]:
        """(norm(h W) + table[token]) / sqrt(2), one [L, P] per layer; None for models without."""
        if not self._per_layer:
            return [None] * len(self.layers)
        shape = (len(tokens), len(self.layers), self._per_layer)
        table = (self._extra_table.rows(tokens, self.dtype) * self._per_layer**0.5).reshape(shape)
        projected = (self._project(h) * self.config.hidden_size**-0.5).reshape(shape)
        mixed = (mx.fast.rms_norm(projected, self._extra_norm, self.config.eps) + table) * 2.0**-0.5
        return tuple(mx.split(mixed.reshape(len(tokens), -1), len(self.layers), axis=-1))
