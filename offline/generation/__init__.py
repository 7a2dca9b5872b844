"""Trains what turns embeddings into captions and pictures, and puts it together as a generator."""
