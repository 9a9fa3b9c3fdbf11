"""Carrying out a plan: every file fetched and checked, then the commits pinned.

Until the last file is in place nothing refers to the new commits, so an interrupted pull leaves what was there before
as it was.
"""

from __future__ import annotations

import time
from pathlib import Path

from mlxmtp.hub.client import OnWait
from mlxmtp.hub.plan import Part, Plan
from mlxmtp.hub.records import Record, Records
from mlxmtp.hub.transfer import OnBytes, Transfer


def pull(plan: Plan, records: Records, *, on_bytes: OnBytes, on_wait: OnWait | None = None) -> list[Path]:
    """Fetch what is missing and check everything; the folders of the parts.

    Raises DownloadError; what has arrived stays and the next call goes on from there.
    """
    plan.check_space()
    folders = [_fetch(part, on_bytes, on_wait) for part in plan.parts]
    drafter = next((part.repo for part in plan.parts if part.role == "drafter"), None)
    # The drafter first: a target is pinned only together with the drafter it was pulled with.
    for part in reversed(plan.parts):
        records.write(_record(part, drafter if part.role == "target" else None))
        if part.revision in (None, "main"):
            part.cached.set_main(part.commit)
    return folders


def _fetch(part: Part, on_bytes: OnBytes, on_wait: OnWait | None) -> Path:
    transfer = Transfer(part.cached, part.commit, on_bytes=on_bytes, on_wait=on_wait)
    for file in part.files:
        transfer.fetch(file)
    return part.cached.snapshot(part.commit)


def _record(part: Part, drafter: str | None) -> Record:
    files = {file.name: file.etag for file in part.files}
    return Record(part.repo, part.revision, part.commit, drafter, time.time(), files)
