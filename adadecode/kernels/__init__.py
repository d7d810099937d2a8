"""What computes a decode step: frozen weights, rows of hidden states, a cache of keys and values."""
