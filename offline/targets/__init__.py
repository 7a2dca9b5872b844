"""What the EEG is aligned to: features of the stimuli, computed once and kept."""
