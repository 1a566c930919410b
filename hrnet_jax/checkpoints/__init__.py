"""Training states and weights on disk."""
