"""What happens to samples, and to one epoch."""
