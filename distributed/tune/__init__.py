"""A sweep on Ray Tune."""
