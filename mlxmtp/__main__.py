"""The process, apart from `cli/app.py`: its first statement lets Ctrl-C during imports end it without a traceback.

Before that is the interpreter's own start and the two lines of the installed command, which no program can reach.
"""

import _signal as signal  # type: ignore[import-not-found]  # the module `signal` would import enum first

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # `cli/app.py` says what comes then

import sys


def main() -> int:
    """Run the command line and return the exit code."""
    from mlxmtp.cli.app import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
