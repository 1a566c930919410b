"""Drawn street scenes with exact labels."""
