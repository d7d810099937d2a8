"""Two runs or two sweeps held against each other, from their tables alone: speeds, acceptance, scores, outputs, origins."""
