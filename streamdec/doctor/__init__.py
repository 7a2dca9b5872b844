"""Before a session: is the whole rig as it should be, and what to change."""
