"""From sources to batches, in an order that depends on the step alone."""
