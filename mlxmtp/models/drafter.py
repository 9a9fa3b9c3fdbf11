"""The MTP drafter: four layers that propose tokens from the target's hidden state and K/V.

Source: transformers ``models/gemma4_assistant``; ``tests/goldens`` compare with it.
"""

from typing import Any, NamedTuple, Protocol

import mlx.core as mx

from mlxmtp.models.config import ModelConfig
from mlxmtp.models.layer import Layer, Rotary, Rotation, begin, following_norms, halves
from mlxmtp.models.linear import Linear, Matrix, Weights
from mlxmtp.models.slots import fixed_view
from mlxmtp.models.target import Target

QUERY_BEHIND = 1
"""The queries of all draft steps stand at the last position that has K/V, one behind the bonus token's own.

transformers uses the bonus token's position (0); engines tuned on the trained weights use 1."""


class Scores(NamedTuple):
    """Scores ``values`` [B, C] float32 of the next token being one of ``ids`` [C], or [B, C] for several texts (None:
    the whole vocabulary)."""

    values: mx.array
    ids: mx.array | None


class Context(NamedTuple):
    """Mask and rotation of the query by layer kind, shared by all draft steps of a round."""

    masks: dict[str, mx.array]
    turns: dict[str, Rotation]


class DraftModel(Protocol):
    """Proposes tokens for a target: `Drafter`, and stand-ins of tests and measurements.

    ``context`` is a tree of arrays, and comes back as one: compiled, its named tuples become plain ones.
    """

    def context(self, buffers: list[mx.array], offset: mx.array) -> Any: ...

    def step(
        self, embedding: mx.array, hidden: mx.array, position: mx.array, buffers: list[mx.array], context: Any
    ) -> tuple[Scores, mx.array]: ...


class DenseHead:
    """Scores of the whole vocabulary: x times the tied table."""

    def __init__(self, table: Matrix) -> None:
        self._table = table

    def __call__(self, x: mx.array) -> Scores:
        return Scores(self._table.project(x).astype(mx.float32), None)


class CentroidHead:
    """Scores of the tokens behind the best ``top`` centroids; every other token loses by construction.

    ``order[c * n : (c + 1) * n]`` are the n token ids of centroid c. The table's rows are brought into that order
    at load, so a step multiplies by ``top`` contiguous blocks where they are, as by so many experts.
    """

    def __init__(self, table: Matrix, centroids: Matrix, order: mx.array, top: int) -> None:
        self._centroids, self._top = Linear(centroids), top
        count = centroids.arrays[0].shape[0]
        self._ids = order.astype(mx.int32).reshape(count, -1)  # [centroids, n]
        blocks = (part[order].reshape(count, self._ids.shape[1], -1) for part in table.arrays)
        self._blocks = Matrix(tuple(blocks), table.quantization)

    def __call__(self, x: mx.array) -> Scores:
        nearest = mx.argpartition(-self._centroids(x), self._top - 1, axis=-1)[:, : self._top]
        pairs = [row for row in range(len(x)) for _ in range(self._top)]
        values = self._blocks.gathered(x[:, None], nearest.reshape(-1), pairs)  # [B * top, 1, n]
        ids = self._ids[nearest].reshape(len(x), -1)
        return Scores(values.reshape(ids.shape).astype(mx.float32), ids[0] if len(x) == 1 else ids)


class Drafter:
    """A drafter on its target."""

    def __init__(self, weights: Weights, config: ModelConfig, target: Target) -> None:
        self.config = config
        inner = weights.below("model")
        self.layers = [Layer(inner.below(f"layers.{i}"), config, i, own=False) for i in range(len(config.layer_types))]
        self._norm, table = inner.vector("norm.weight"), inner.matrix("embed_tokens")
        self._stores, self._spec = target.stores, target.cache_spec
        self._rotary = {kind: Rotary(config, kind) for kind in dict.fromkeys(config.layer_types)}
        self._pre, self._post = Linear(weights.matrix("pre_projection")), Linear(weights.matrix("post_projection"))
        self._head: DenseHead | CentroidHead = DenseHead(table)
        if config.raw.get("use_ordered_embeddings"):
            sparse, top = weights.below("masked_embedding"), int(config.raw["centroid_intermediate_top_k"])
            self._head = CentroidHead(table, sparse.matrix("centroids"), sparse.vector("token_ordering"), top)

    def context(self, buffers: list[mx.array], offset: mx.array) -> Context:
        """Return what the draft steps of a round share whose bonus token stands at ``offset`` [B] in each text."""
        turns = {kind: rotary.at(offset - QUERY_BEHIND) for kind, rotary in self._rotary.items()}
        return Context(fixed_view(self._spec, buffers, offset - 1, 1).masks, turns)

    def step(
        self, embedding: mx.array, hidden: mx.array, position: mx.array, buffers: list[mx.array], context: Context
    ) -> tuple[Scores, mx.array]:
        """One draft step: the target's scaled embedding and post-norm hidden state [B, H] -> scores, next hidden state.

        The layers have queries only; K/V are those of the target's last own layer of the same kind. No soft-cap, and
        the same rotation for every ``position`` of the token to come.
        """
        del position
        masks, turns = context
        kv = {kind: halves(self._spec.layer(buffers, i)) for kind, i in self._stores.items()}
        state = begin(self._pre(mx.concatenate([embedding, hidden], axis=-1)), self.layers, self.config.eps)
        for layer, following in zip(self.layers, following_norms(self.layers, self._norm), strict=True):
            about = following, masks[layer.kind], Rotation(*turns[layer.kind])
            state, _ = layer(state, *about, kv=kv[layer.kind])
        return self._head(state.normed), self._post(state.normed)
