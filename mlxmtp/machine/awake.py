"""A Mac that is working does not go to sleep."""

import os
import subprocess
import sys
from contextlib import suppress

_CAFFEINATE = "/usr/bin/caffeinate"


def stay_awake() -> None:
    """Keep a Mac from sleeping when nobody types, as long as this process runs; the display may go dark."""
    if sys.platform == "darwin":
        nowhere = subprocess.DEVNULL
        command = [_CAFFEINATE, "-i", "-w", str(os.getpid())]  # ends with this process
        with suppress(OSError):
            subprocess.Popen(command, stdin=nowhere, stdout=nowhere, stderr=nowhere, start_new_session=True)
