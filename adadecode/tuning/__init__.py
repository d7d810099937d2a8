"""From traces to policies: what every candidate exit would propose, a replay of the engine over it, and a search."""
