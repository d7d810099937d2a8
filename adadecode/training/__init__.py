"""Training of exit heads on the model's own greedy outputs."""
