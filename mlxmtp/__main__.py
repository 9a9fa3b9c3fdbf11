"""The process, apart from `cli/app.py` so that Ctrl-C during its imports ends quietly, too."""

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
