"""A sweep on disk: what was asked, what happened, what it shows. Imports no Ray."""
