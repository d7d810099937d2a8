"""Work: a loaded model evaluates samples with every method, and tells how it goes."""
