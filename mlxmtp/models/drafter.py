"""The MTP drafter: four layers that propose tokens from the target's hidden state and K/V.

One draft step (transformers ``models/gemma4_assistant``; facts confirmed against it by ``tests/goldens``):

    x = pre_projection([embedding, hidden])          embedding = the target's, scaled; hidden = post-norm
    x = 4 decoder layers, queries only               K/V: the target's last own layer of the same kind
    x = norm(x)
    scores = head(x)                                 no soft-cap
    hidden = post_projection(x)                      what the next step reads

The query position is constant within a round: QUERY_BEHIND rows behind the bonus token.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlxmtp.models._mlx_lm import gemma4_text
from mlxmtp.models.config import ModelConfig
from mlxmtp.models.kv_cache import FixedView
from mlxmtp.models.layer import KV, Block, Rotary, Rotation, halves
from mlxmtp.models.linear import Product
from mlxmtp.models.target import Target

QUERY_BEHIND = 1
"""The draft queries stand at the last position that has K/V, one behind the bonus token's own.

transformers uses the bonus token's position (0); engines tuned on the trained weights use 1."""


class Scores(NamedTuple):
    """What a draft step thinks of the next token: ``values`` [1, C] float32 for the token ids ``ids`` [C]
    (None: C is the whole vocabulary in order)."""

    values: mx.array
    ids: mx.array | None


@dataclass(frozen=True, slots=True)
class Context:
    """What all draft steps of a round share: K/V, mask and rotation of the query by layer kind."""

    kv: dict[str, KV]
    masks: dict[str, Any]
    turns: dict[str, Rotation]


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


class DenseHead:
    """Scores of the whole vocabulary: x times the tied table."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __call__(self, x: mx.array) -> Scores:
        return Scores(self._table.as_linear(x).astype(mx.float32), None)

    def arrays(self) -> list[Any]:
        return []


class CentroidHead:
    """Scores of the tokens behind the best centroids only.

    ``token_ordering[c * n : (c + 1) * n]`` are the n token ids of centroid c. The table's rows are brought into
    that order once, at load, so a step gathers ``top`` contiguous blocks (packed ones where the table is
    quantized) instead of single rows; every other token loses by construction.
    """

    def __init__(self, weights: Any, top: int) -> None:
        embedding = weights.model.pop("embed_tokens")  # popped: the blocks replace it
        order = weights.masked_embedding.pop("token_ordering")
        centroids = weights.masked_embedding.pop("centroids")
        self._centroids, self._top = Product(centroids), top
        count = centroids.weight.shape[0]
        self._ids = order.astype(mx.int32).reshape(count, -1)  # [centroids, n]
        self._blocks = {name: embedding[name][order].reshape(count, self._ids.shape[1], -1) for name in embedding}
        self._packing = {
            name: vars(embedding)[name] for name in ("group_size", "bits", "mode") if name in vars(embedding)
        }

    def arrays(self) -> list[Any]:
        return [self._centroids.arrays(), self._ids, self._blocks]

    def __call__(self, x: mx.array) -> Scores:
        nearest = mx.argpartition(-self._centroids(x), self._top - 1, axis=-1)[0, : self._top]
        parts = {name: blocks[nearest] for name, blocks in self._blocks.items()}  # [top, n, width]
        rows = (
            mx.dequantize(parts["weight"], parts["scales"], parts.get("biases"), **self._packing)
            if self._packing
            else parts["weight"]
        )
        values = x @ rows.reshape(-1, rows.shape[-1]).T.astype(x.dtype)
        return Scores(values.astype(mx.float32), self._ids[nearest].reshape(-1))


class Drafter:
    """A drafter on its target. ``weights`` is a DrafterWeights with its parameters in place."""

    def __init__(self, weights: Any, config: ModelConfig, target: Target) -> None:
        self.config = config
        eps = float(config.text.get("rms_norm_eps", 1e-6))
        self._weights = weights
        self._blocks = [Block(layer, eps) for layer in weights.model.layers]
        self._stores, self._spec = target.stores, target.cache_spec
        self._rotary = {kind: Rotary(config, kind) for kind in dict.fromkeys(config.layer_types)}
        self._pre, self._post = Product(weights.pop("pre_projection")), Product(weights.pop("post_projection"))
        if config.raw.get("use_ordered_embeddings"):
            self._head: DenseHead | CentroidHead = CentroidHead(weights, int(config.raw["centroid_intermediate_top_k"]))
        else:
            self._head = DenseHead(weights.model.embed_tokens)

    def arrays(self) -> list[Any]:
        """Everything derived from the weights, to be evaluated at load."""
        return [
            *(block.arrays() for block in self._blocks),
            self._head.arrays(),
            self._pre.arrays(),
            self._post.arrays(),
        ]

    def context(self, buffers: list[mx.array], offset: mx.array) -> Context:
        """What the draft steps of a round whose bonus token stands at ``offset`` [1] read."""
        kv = {kind: halves(self._spec.layer(buffers, i)) for kind, i in self._stores.items()}
        turns = {kind: rotary.at(offset - QUERY_BEHIND) for kind, rotary in self._rotary.items()}
        return Context(kv, FixedView(self._spec, buffers, offset - 1, 1).masks, turns)

    def step(self, embedding: mx.array, hidden: mx.array, context: Context) -> tuple[Scores, mx.array]:
        """One draft step: target embedding and hidden state [1, B] -> scores, next hidden state [1, B]."""
        x = self._pre(mx.concatenate([embedding, hidden], axis=-1))
        for block in self._blocks:
            x, _ = block(x, context.masks[block.kind], context.turns[block.kind], kv=context.kv[block.kind])
        x = self._weights.model.norm(x)
        return self._head(x), self._post(x)
