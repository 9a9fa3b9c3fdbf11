"""Whether a drafter belongs to a target, from their configurations alone."""

from mlxmtp.errors import LoadError
from mlxmtp.models.config import ModelConfig


def check_pair(target: ModelConfig, drafter: ModelConfig) -> None:
    """Raises LoadError unless the drafter can read the target's hidden states and K/V."""
    if not drafter.is_drafter:
        raise LoadError(f"{drafter.folder} is a '{drafter.model_type}' model, not a Gemma 4 drafter.")
    pairs = [
        ("hidden size", target.hidden_size, drafter.raw.get("backbone_hidden_size")),
        ("vocabulary", target.vocab_size, drafter.vocab_size),
        ("sliding window", target.window, drafter.window),
    ]
    for kind in sorted(set(drafter.layer_types)):
        if kind not in target.layer_types:
            raise LoadError(
                f"The drafter in {drafter.folder} has {kind} layers and the target has none: they are not a pair."
            )
        pairs += [
            (f"head size of {kind}", target.head_dim(kind), drafter.head_dim(kind)),
            (f"key/value heads of {kind}", target.kv_heads(kind), drafter.kv_heads(kind)),
        ]
    for what, ours, theirs in pairs:
        if ours != theirs:
            raise LoadError(
                f"The drafter in {drafter.folder} does not fit this target: {what} {theirs}, the target has {ours}."
            )
