"""From the feed to what a lab already has: a Lab Streaming Layer stream of the results, and OSC."""
