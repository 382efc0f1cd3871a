"""Memory, time and money of a training run, from settings alone: nothing is allocated and no device is needed."""
