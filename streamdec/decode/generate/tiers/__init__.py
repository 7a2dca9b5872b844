"""The tiers of the quality ladder: how each makes a caption or a picture of a request."""
