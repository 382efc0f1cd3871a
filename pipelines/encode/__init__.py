"""Encodings kept on disk (text embeddings, clean latents), and where training takes them from."""
