"""Shows images to the person with the cap, and marks each one at its flip."""
