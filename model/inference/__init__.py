"""A finished tagger in use."""
