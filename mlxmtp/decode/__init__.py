"""Decoding: rounds of draft and check over token ids. Knows nothing of text, files or the device's name."""

import mlxmtp.models  # noqa: F401  (before this package's own import of mlx, because it puts OpenBLAS under it)
