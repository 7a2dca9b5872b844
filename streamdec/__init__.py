"""streamdec: shows, live, what a person with an EEG cap is looking at."""

__version__ = "0.1.0"
