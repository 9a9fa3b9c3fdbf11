"""Networks, weights and K/V storage: arrays in, arrays out; knows nothing of text, files of text or the terminal.

Importing this package puts OpenBLAS under mlx where there is one, because that works only before the first
``import mlx.core``: every path to mlx leads through here.
"""

from mlxmtp.models import blas

blas.load()
