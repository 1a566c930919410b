"""From a split to metrics and a report."""
