"""One self-contained page about a run: the data's way, the mixture, the losses, the pictures."""
