"""Sharding a data set, evaluating one shard, parity, and the atomic store."""
