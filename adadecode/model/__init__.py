"""transformers models seen as segments of layers at static step shapes; exit heads; the K/V cache."""
