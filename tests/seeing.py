"""The built-in model with random towers: it answers in words, and what it sees and hears changes its numbers only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import mlx.core as mx

from tests.golden import FOLDER
from tests.text_checkpoint import write_json

POCKET = Path(__file__).parents[1] / "assets" / "pocket" / "target"
IDS = {
    "boi_token_id": 60, "eoi_token_id": 61, "image_token_id": 62, "boa_token_id": 63, "eoa_token_index": 64,
    "audio_token_id": 65,
}  # fmt: skip
_SPELLED = {60: "<|image>", 61: "<image|>", 62: "<|image|>", 63: "<|audio>", 64: "<audio|>", 65: "<|audio|>"}
# In the shape of Gemma's templates: media without blanks around them, texts trimmed.
_TEMPLATE = """\
{{ bos_token }}
{%- for message in messages -%}
<|turn>{{ 'model' if message.role == 'assistant' else message.role }}
{% if message.content is string %}{{ message.content | trim }}{% else %}
{%- for part in message.content %}
{%- if part.type == 'text' %}{{ part.text | trim }}{% else %}{{ '<|' ~ part.type ~ '|>' }}{% endif %}
{%- endfor %}{% endif %}<turn|>
{% endfor %}
{%- if add_generation_prompt %}<|turn>model
{% endif %}"""


def write_blind_pocket(folder: Path) -> Path:
    """Write the built-in model without its towers and return the folder."""
    folder.mkdir(parents=True)
    config = json.loads((POCKET / "config.json").read_text())
    text_only = {key: value for key, value in config.items() if key not in ("vision_config", "audio_config")}
    write_json(folder / "config.json", text_only)
    mx.save_safetensors(str(folder / "model.safetensors"), _text_weights())
    for path in POCKET.iterdir():
        if not (folder / path.name).exists():
            (folder / path.name).symlink_to(path)
    return folder


def _text_weights() -> dict[str, mx.array]:
    weights = cast("dict[str, mx.array]", mx.load(str(POCKET / "model.safetensors")))
    return {name: one for name, one in weights.items() if name.startswith("model.language_model.")}


def write_seeing_pocket(folder: Path) -> Path:
    """Write the checkpoint folder and return it."""
    folder.mkdir(parents=True)
    golden = FOLDER / "media" / "e2b"
    seen = json.loads((golden / "config.json").read_text())
    config = json.loads((POCKET / "config.json").read_text())
    config.pop("vision_soft_tokens_per_image", None)
    kept = {key: seen[key] for key in ("vision_config", "audio_config") if key in seen}
    write_json(folder / "config.json", config | IDS | kept)
    towers: dict[str, mx.array] = {}
    for file in golden.glob("*towers.safetensors"):
        towers |= cast("dict[str, mx.array]", mx.load(str(file)))
    for name in [name for name in towers if name.endswith("embedding_projection.weight")]:
        width = towers[name].shape[1]
        key = mx.random.key(len(name))
        drawn = mx.random.normal((config["text_config"]["hidden_size"], width), key=key)
        towers[name] = (drawn / width**0.5).astype(mx.bfloat16)
    files = [f"model-{i:05d}-of-00002.safetensors" for i in (1, 2)]
    text = _text_weights()
    mx.save_safetensors(str(folder / files[0]), text)
    mx.save_safetensors(str(folder / files[1]), towers)
    weight_map = dict.fromkeys(text, files[0]) | dict.fromkeys(towers, files[1])
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    for name in ("generation_config.json", "tokenizer_config.json"):
        (folder / name).symlink_to(POCKET / name)
    tokenizer = json.loads((POCKET / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    for spelling in [spelling for spelling, number in vocabulary.items() if number in _SPELLED]:
        del vocabulary[spelling]
    for number, spelling in _SPELLED.items():
        if (own := vocabulary.pop(spelling, None)) is not None:
            vocabulary[f"<unused{own}>"] = own
        vocabulary[spelling] = number
    marks = [one for one in tokenizer["added_tokens"] if one["content"] not in _SPELLED.values()]
    like = next(one for one in marks if one["content"] == "<|turn>")
    marks += [like | {"id": number, "content": spelled} for number, spelled in _SPELLED.items()]
    tokenizer["added_tokens"] = marks
    write_json(folder / "tokenizer.json", tokenizer)
    (folder / "chat_template.jinja").write_text(_TEMPLATE)
    return folder
