"""From run folders to a report a person reads: gather, look inside, draw, lay out; see :mod:`.write`."""
