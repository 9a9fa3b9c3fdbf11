"""Measure an answer held to a schema beside mlx-vlm's constrained plain decoding: one checkpoint, one schema, in turns.

    .venv/bin/python -m scripts.benchmarks.structured_peer --peers .venv-peers/bin/python [--write docs/benchmarks.md]

mlx-vlm allows no drafter beside a schema. Its mask is a Metal kernel; elsewhere the same choice by plain operations
takes its place here. Its JSON has no white space, so the documents differ: compare tokens per second. A minute.
"""

from __future__ import annotations

import json
import subprocess
from statistics import median

import mlxmtp
from scripts.benchmarks.harness.environment import environment
from scripts.benchmarks.harness.options import repeated, say
from scripts.benchmarks.harness.report import machine
from scripts.benchmarks.harness.section import write_section
from scripts.benchmarks.structured import QUESTION, TABLE, answer

PEER = """
import json, sys, time
from pathlib import Path
import mlx.core as mx
from mlx_vlm import structured
from mlx_vlm.generate import generate_step
from mlx_vlm.utils import load_model
from transformers import PreTrainedTokenizerFast

def masked(logits, mask):
    bits = (mask.astype(mx.uint32)[:, :, None] >> mx.arange(32, dtype=mx.uint32)) & 1
    return mx.where(bits.reshape(1, -1)[:, : logits.shape[-1]].astype(mx.bool_), logits, -mx.inf)

if not mx.metal.is_available():
    structured._apply_llguidance_mask = masked
folder, schema, prompt, count = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
model = load_model(Path(folder))
if not mx.metal.is_available():
    model.set_dtype(mx.float32)
    mx.eval(model.parameters())
tokenizer = PreTrainedTokenizerFast(tokenizer_file=folder + "/tokenizer.json", eos_token="<eos>")
for kind in sys.stdin:
    held = kind.strip() == "schema"
    processors = [structured.build_json_schema_logits_processor(tokenizer, schema)] if held else None
    times, tokens = [], []
    steps = generate_step(mx.array([prompt]), model, None, None, max_tokens=count, temperature=0.0,
                          logits_processors=processors)
    for token, _ in steps:
        times.append(time.perf_counter())
        tokens.append(int(token))
        if tokens[-1] == tokenizer.eos_token_id:
            break
    steps.close()
    print(json.dumps([len(tokens), (len(tokens) - 1) / (times[-1] - times[0])]), flush=True)
"""


def main() -> None:
    """Measure and report."""
    parser = repeated(__doc__, 3)
    parser.add_argument("--peers", required=True, help="Python with mlx-vlm and llguidance")
    options = parser.parse_args()
    model = mlxmtp.load("pocket")
    prompt = model.tokenizer.prompt_ids([{"role": "user", "content": QUESTION}])
    command = [options.peers, "-c", PEER, str(model.config.folder), TABLE.source, json.dumps(prompt), "240"]
    found: dict[str, list[tuple[int, float]]] = {}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment(), text=True, **pipes) as peer:
        assert peer.stdin is not None
        assert peer.stdout is not None
        for turn in range(options.repetitions + 1):  # the first builds kernels
            for name, drafts in {"plain": 0, "drafter and forced tokens": "auto"}.items():
                stats = answer(model, constraint=TABLE, num_draft_tokens=drafts)
                found.setdefault(f"mlxmtp, table, {name}", []).append((stats.generation_tokens, stats.generation_tps))
            for name, kind in {"table, plain": "schema", "free text, plain": "free"}.items():
                peer.stdin.write(f"{kind}\n")
                peer.stdin.flush()
                found.setdefault(f"mlx-vlm, {name}", []).append(tuple(json.loads(peer.stdout.readline())))
            say(f"{turn} of {options.repetitions}")
        peer.stdin.close()
    lines = ["| answer | tokens | tokens/s, median (range) |", "|---|---|---|"]
    for name, runs in found.items():
        speeds = sorted(speed for _, speed in runs[1:])
        lines.append(f"| {name} | {runs[0][0]} | {median(speeds):.0f} ({speeds[0]:.0f} to {speeds[-1]:.0f}) |")
    lines += ["", f"{machine()}."]
    print("\n".join(lines))
    if options.write:
        heading = "Constraints beside mlx-vlm"
        write_section(options.write, "structured-peer", "\n".join(lines), script="structured_peer.py", heading=heading)


if __name__ == "__main__":
    main()
