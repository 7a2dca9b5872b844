"""Captions and pictures beside what was shown."""
