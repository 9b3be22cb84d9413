"""What a small lab has: the model of its old runs, and the one that took its place."""
