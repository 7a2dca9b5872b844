"""Architectures: torch only, one published network per file, named as published; see :mod:`.registry`."""
