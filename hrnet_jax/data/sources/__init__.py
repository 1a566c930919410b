"""Data sets as people have them: classes, names, and where the bytes are."""
