"""One training on Ray Train."""
