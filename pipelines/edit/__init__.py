"""Editing files with a trained model, and taking a trained model out of its run folder."""
