"""Write tests/goldens: tiny Gemma 4 pairs in the published layout and what the reference computes from them.

The tests need the files only, not this script. To make them again (about two minutes on one CPU core):

    python3.11 -m venv /tmp/reference
    /tmp/reference/bin/pip install torch==2.13.0 transformers==5.17.0 safetensors numpy
    /tmp/reference/bin/python -m scripts.goldens

The versions matter: later releases of transformers write other config files (5.18) or cannot build the drafter
(5.23.0). Everything follows from seeds; on another processor the last bits may differ.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
import transformers

from scripts.goldens import far
from scripts.goldens.families import FAMILIES
from scripts.goldens.record import record

OUT = Path(__file__).resolve().parents[2] / "tests" / "goldens"


def main() -> None:
    """Make the families named on the command line."""
    parser = argparse.ArgumentParser(description="Write the golden checkpoints and reference outputs.")
    parser.add_argument("families", nargs="*", default=list(FAMILIES), help="default: all of " + " ".join(FAMILIES))
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write to")
    options = parser.parse_args()
    torch.set_num_threads(1)  # these matrices are too small for more, and the order of sums stays fixed
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in options.families:
        folder = options.out / name
        shutil.rmtree(folder, ignore_errors=True)
        summary = record(FAMILIES[name], folder)
        if name in far.FAMILIES:
            moved = far.record_far(FAMILIES[name], folder)
            summary["facts"] |= {f"float32_angles_move_{key}": value for key, value in moved.items()}
        print(name, *(f"{key}={value:.4g}" for key, value in summary["facts"].items()), sep="  ")


if __name__ == "__main__":
    main()
