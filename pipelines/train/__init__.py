"""Training: the loop, sharding, EMA, checkpoints, and how it is launched on Ray."""
