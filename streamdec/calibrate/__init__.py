"""Makes a bundle fit this person, cap and day, from a recorded block of known images."""
