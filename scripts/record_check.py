"""Record the scores with which `mlxmtp doctor --check` compares a machine's own.

    .venv/bin/python -m scripts.record_check        # writes mlxmtp/bench/recorded.json, 20 kB, some seconds

Networks and weights are made by `mlxmtp/bench/self_check.py`; record anew when they change.
"""

import json

from mlxmtp.bench.self_check import RECORDED, record

if __name__ == "__main__":
    rows = {family: [json.dumps(row) for row in scores] for family, scores in record().items()}
    told = (f'"{family}": [\n' + ",\n".join(found) + "\n]" for family, found in rows.items())
    RECORDED.write_text("{" + ",\n".join(told) + "}\n", encoding="utf-8")
