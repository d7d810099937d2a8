"""Scores of outputs, a step of their own: scorers, a file each, and a sandbox for the programs that a model wrote."""
