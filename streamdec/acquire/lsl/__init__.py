"""Lab Streaming Layer: the only room that imports pylsl."""
