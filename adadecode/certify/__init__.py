"""Whether a server with speculative decoding gives what the same model gives without: two endpoints, the same prompts."""
