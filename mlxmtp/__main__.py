"""The process, apart from `cli/app.py` so that Ctrl-C during its imports ends quietly, too."""

import _signal as signal  # type: ignore[import-not-found]  # the module `signal` would import enum first
import sys


def main() -> int:
    """Run the command line and return the exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of an import; `run` says what comes then
    from mlxmtp.cli.app import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
