"""Coarse filtering: look at every sample once, choose thresholds afterwards, keep the reasons."""
