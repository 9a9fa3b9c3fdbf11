"""What a conversion finds in its journal when it goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxmtp.convert.run import StepJournal

HEAD = "f" * 64


def journal(path: Path, *checksums: int) -> None:
    with StepJournal.open(path, HEAD) as made:
        for checksum in checksums:
            made.add(checksum)


@pytest.mark.parametrize(
    "tail", [b"", b"0000", bytes(18), bytes(5), b"0000001g\n00000004\n", b"12345678\0", b"-0000001\n"]
)
def test_what_a_power_cut_left_behind_the_last_whole_line_is_passed_over(tmp_path: Path, tail: bytes) -> None:
    """A file system may have made the file longer and not have written what belongs there: zeros."""
    path = tmp_path / "journal"
    journal(path, 1, 2, 3)
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    with StepJournal.open(path, HEAD) as again:
        assert (again.checksums, again.stale) == ([1, 2, 3], False)
        again.add(4)
    assert path.read_bytes() == whole + b"00000004\n"
