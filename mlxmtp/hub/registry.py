"""Short names of models: `e2b`, `12b:8bit`. The data is in `registry.toml`."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mlxmtp.files import exists, expand_home, is_folder, is_path
from mlxmtp.models.config import FULL, SLIDING, ModelConfig

BUILT_IN = "pocket"
_PACKED = {"4bit": 4, "8bit": 8, "qat": 4}
_FOUR_LAYERS = {
    "num_hidden_layers": 4, "pattern": 3, "num_kv_shared_layers": 4,
    "hidden_size_per_layer_input": 0, "enable_moe_block": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Repo:
    """A repository on the Hugging Face hub; `size` in bytes, None where nobody has measured it."""

    repo: str
    size: int | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One alias in one variant: the target and drafter that `pull NAME` fetches."""

    name: str
    title: str
    target: Repo
    drafter: Repo
    family: str
    variant: str
    draft: int
    """Draft tokens per round that other engines recommend."""

    def target_config(self) -> ModelConfig:
        """The part of the target's configuration that decides about its size; it has no folder."""
        return _config(_table()[self.family]["text"], _PACKED.get(self.variant), drafter=False)

    def drafter_config(self) -> ModelConfig:
        """The same for the drafter, in 16 bits."""
        table = _table()[self.family]
        more = {"backbone_hidden_size": table["text"]["hidden_size"]}
        return _config({**table["text"], **_FOUR_LAYERS, **table["drafter_text"]}, None, drafter=True, **more)

    @property
    def size(self) -> int | None:
        """Bytes of target and drafter, of the target alone where the drafter's are unknown; None if both are."""
        return self.target.size and self.target.size + (self.drafter.size or 0)

    @property
    def source_repo(self) -> str:
        """Google's own 16-bit weights, which the variant is converted from."""
        if self.variant == "qat":
            return self.drafter.repo.removesuffix("-assistant")
        return next(one.target.repo for one in entries() if (one.family, one.variant) == (self.family, "bf16"))


_PAGE = re.compile(
    r"(?:(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/|hf://)(?:models/)?([^/@?#]+/[^/@?#]+)([^?#]*).*"
)


def plain_name(name: str) -> str:
    """Return a name as people mean it: of an address on the hub `org/repo` or `org/repo@rev`, nothing around it."""
    if not exists(expand_home(name)):
        name = name.strip()
        name = BUILT_IN if name.lower() == BUILT_IN else name  # short names have no case
    if is_path(name):
        return name
    if (page := _PAGE.fullmatch(name)) is None:
        return name.rstrip("/") if name.count("/") == 2 and not is_folder(expand_home(name)) else name
    rest = page[2].strip("/").removeprefix("@")
    kind, _, below = rest.partition("/")
    revision = (below if kind == "tree" else below.partition("/")[0]) if kind in ("tree", "blob", "resolve") else kind
    return f"{page[1]}@{revision}" if revision not in ("", "main") else page[1]


def split_revision(name: str) -> tuple[str, str | None]:
    """Return `org/repo` and the revision of `org/repo@rev`, None where there is none."""
    repo, at, revision = name.partition("@")
    named = at and repo.count("/") == 1 and not is_path(name)
    return (repo, revision or None) if named else (name, None)


def find_entry(name: str) -> Entry | None:
    """Return the entry of `alias`, `alias:variant` or a target's repository, in any case; None if there is none."""
    wanted = name.lower()
    return next((entry for entry in entries() if wanted in (entry.name, entry.target.repo.lower())), None)


@cache
def entries() -> tuple[Entry, ...]:
    """Return every alias in every variant, smallest model first; the default variant has the bare name, too."""
    found = []
    for alias, model in _table().items():
        for variant, target in model["variants"].items():
            pair = [Repo(one["repo"], one.get("bytes")) for one in (target, target.get("drafter", model["drafter"]))]
            names = [alias] * (variant == model["default"]) + [f"{alias}:{variant}"]
            found += [Entry(name, model["title"], pair[0], pair[1], alias, variant, model["draft"]) for name in names]
    return tuple(found)


def same_shape(config: ModelConfig) -> Entry | None:
    """Return the entry whose target has the shape of `config`, which its drafter fits as well; None if none has."""
    shapes = ((entry.target_config(), entry) for entry in entries())
    wanted = config.hidden_size, config.layer_types
    return next((entry for known, entry in shapes if (known.hidden_size, known.layer_types) == wanted), None)


def known_names() -> tuple[str, ...]:
    """Return the bare aliases, the built-in model first."""
    return (BUILT_IN, *(entry.name for entry in entries() if ":" not in entry.name))


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("registry.toml").read_text(encoding="utf-8"))


def _config(table: Mapping[str, Any], bits: int | None, *, drafter: bool, **more: Any) -> ModelConfig:
    text = {"vocab_size": 262144, "head_dim": 256, "global_head_dim": 512, **table}
    group = [SLIDING] * int(text.pop("pattern")) + [FULL]
    count = int(text["num_hidden_layers"])
    text["layer_types"] = (group * count)[:count]
    raw = {**more, "use_ordered_embeddings": "num_centroids" in text, "num_centroids": text.get("num_centroids")}
    if bits:
        raw["quantization"] = {"bits": bits, "group_size": 64}
    return ModelConfig(Path(), "gemma4_assistant" if drafter else "gemma4", raw, text)
