"""Parts of ``make_goldens.py``: tiny Gemma 4 pairs and what the reference implementation computes from them."""
