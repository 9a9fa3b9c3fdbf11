"""A checkpoint folder with everything but weights: Gemma's tokenizer scheme, a template, the JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SPECIALS = {
    0: "<pad>", 1: "<eos>", 2: "<bos>", 46: "<|tool>", 47: "<tool|>", 48: "<|tool_call>", 49: "<tool_call|>",
    50: "<|tool_response>", 51: "<tool_response|>", 52: '<|"|>', 98: "<|think|>", 100: "<|channel>", 101: "<channel|>",
    105: "<|turn>", 106: "<turn|>",
}  # fmt: skip
FIRST_BYTE = 107
MERGES = ["▁ ▁", "▁ t", "h e", "▁t he"]

# Written for these tests, in the shape that facts about Gemma's format describe.
TEMPLATE = """\
{{ bos_token }}
{%- if enable_thinking or messages[0].role == 'system' -%}
<|turn>system
{% if enable_thinking %}<|think|>
{% endif %}
{{- messages[0].content if messages[0].role == 'system' }}<turn|>
{% endif %}
{%- for message in messages if message.role != 'system' -%}
<|turn>{{ 'model' if message.role == 'assistant' else message.role }}
{{ message.content | trim }}<turn|>
{% endfor %}
{%- if add_generation_prompt %}<|turn>model
{% endif %}"""


def write_text_checkpoint(
    folder: Path, *, context: int = 2048, template: str | None = TEMPLATE, **generation: Any
) -> Path:
    """Write the folder and return it; `generation` goes into generation_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    text_config = {
        "vocab_size": len(_vocabulary()), "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"], "max_position_embeddings": context,
    }  # fmt: skip
    write_json(folder / "config.json", {"model_type": "gemma4", "eos_token_id": [1, 106], "text_config": text_config})
    write_json(folder / "generation_config.json", {"eos_token_id": [1, 106, 50], **generation})
    write_json(folder / "tokenizer.json", _tokenizer())
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _vocabulary() -> dict[str, int]:
    vocab = {SPECIALS.get(number, f"<unused{number}>"): number for number in range(FIRST_BYTE)}
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += ["▁", *(chr(code) for code in range(33, 127)), "é", "中", "▁▁", "▁t", "he", "▁the"]
    for piece in pieces:
        vocab[piece] = len(vocab)
    return vocab


def _tokenizer() -> dict[str, Any]:
    added = [
        {
            "id": number, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True,
        }
        for number, content in SPECIALS.items()
    ]  # fmt: skip
    space = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [space, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": _vocabulary(), "merges": MERGES,
        },
    }  # fmt: skip
