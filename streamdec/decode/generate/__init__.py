"""The quality ladder: captions and pictures by the best tier that still meets its deadline, in other processes."""
