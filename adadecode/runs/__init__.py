"""Durable runs: a plan, a folder that takes each result once, and what the committed rows come to."""
