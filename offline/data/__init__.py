"""Data sets: one loader each, into the prepared store."""
