"""Recorded sessions: the folder that ``serve --record`` makes, and what can be done with it afterwards.

Not to be confused with :mod:`streamdec.session`, the hot loop: nothing of this room runs in it but
:class:`.minutes.Minutes`.
"""
