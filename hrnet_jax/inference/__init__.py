"""From an image to labels at its size."""
