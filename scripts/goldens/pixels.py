"""Write tests/goldens/media/pixels.json: hashes of what the reference's Pillow processor makes of pictures.

Every budget, and sizes from one pixel to a phone's screenshot. With the environment of `scripts/goldens`, and Pillow:

    /tmp/reference/bin/python -m scripts.goldens.pixels
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import transformers
from PIL import Image
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

from scripts.goldens.media import OUT, _raster
from scripts.goldens.pictures import SIZES, picture

BUDGETS = (70, 140, 280, 560, 1120)


def main() -> None:
    """Write the file."""
    transformers.logging.set_verbosity_error()
    found: list[dict[str, Any]] = []
    for seed, (width, height) in enumerate(SIZES):
        source = Image.fromarray(picture(width, height, seed))
        for budget in BUDGETS:
            made = Gemma4ImageProcessorPil(max_soft_tokens=budget)(images=[source], return_tensors="pt")
            count = int(made["num_soft_tokens_per_image"][0])
            pixels = _raster(made["pixel_values"][0], made["image_position_ids"][0], count)
            digest = hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
            found.append({"size": [width, height], "budget": budget, "pixels": [*pixels.shape], "sha256": digest})
    lines = ",\n".join(json.dumps(one) for one in found)
    (OUT / "pixels.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
