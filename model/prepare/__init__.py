"""Labelled files in, a dataset directory out."""
