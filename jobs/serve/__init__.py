"""`python -m jobs serve`: a bundle over HTTP, in this process or on Ray Serve."""
