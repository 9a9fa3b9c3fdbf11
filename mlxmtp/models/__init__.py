"""Networks, weights and K/V storage: arrays in, arrays out; knows nothing of text or the terminal."""
