"""A simulated subject with a known truth: an image world, a forward model, noise, a virtual amplifier."""
