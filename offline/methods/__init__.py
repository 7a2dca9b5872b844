"""One published method per file: encoder, targets, losses, schedule, citation; see :mod:`.registry`."""
