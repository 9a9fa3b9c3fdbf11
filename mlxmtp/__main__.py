"""The process: `python -m mlxmtp` and the `mlxmtp` command both start here.

Kept apart from `cli/app.py` so that Ctrl-C during its imports ends as quietly as at any later moment.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line and return the exit code."""
    try:
        from mlxmtp.cli.app import main as run

        return run()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
