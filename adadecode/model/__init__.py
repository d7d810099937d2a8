"""What a frozen model is: weights read from transformers, families that are supported, exit heads and their files."""
