"""Byte-fallback BPE in Gemma's scheme: spaces are U+2581, special tokens stand at Gemma's ids."""

from __future__ import annotations

import json
import string
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from scripts.pocket.layout import SPECIAL

VOCAB = 4096
_FIRST_BYTE = 107
# words with their space, single digits, runs of signs, line ends: merges never cross these borders,
# so a prompt and the answer after it are encoded the same apart and together
_PIECES = r"▁?\p{L}+|\p{N}|▁?[^\s▁\p{L}\p{N}]+|\n+|▁+|\s"


def train(texts: Iterable[str]) -> Tokenizer:
    """A tokenizer of exactly VOCAB ids, the same for the same texts."""
    scratch = Tokenizer(models.BPE())
    scratch.normalizer = normalizers.Replace(" ", "▁")
    scratch.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - _FIRST_BYTE - 256,
        initial_alphabet=[*string.printable.strip(), "▁", "\n", "\t"],
        limit_alphabet=200,
        min_frequency=3,
        show_progress=False,
    )
    scratch.train_from_iterator(texts, trainer)
    return _assemble(json.loads(scratch.to_str())["model"])


def renewed(path: Path) -> Tokenizer:
    """An older tokenizer with the special tokens of today at their ids; all others stay where they are."""
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    learned = {name: i for name, i in model["vocab"].items() if i >= _FIRST_BYTE + 256}
    return _assemble({"vocab": learned, "merges": model["merges"]})


def _assemble(model: dict[str, Any]) -> Tokenizer:
    names = [SPECIAL.get(i, f"<unused{i}>") for i in range(_FIRST_BYTE)]
    names += [f"<0x{b:02X}>" for b in range(256)]
    names += sorted(model["vocab"], key=model["vocab"].__getitem__)
    names += [f"<unused{i}>" for i in range(len(names), VOCAB)]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={name: i for i, name in enumerate(names)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL.values()])
    return tokenizer


def load(path: Path) -> Tokenizer:
    """Read a tokenizer.json."""
    return Tokenizer.from_file(str(path))
