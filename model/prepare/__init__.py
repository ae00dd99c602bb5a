"""Labeled files in, a dataset directory out."""
