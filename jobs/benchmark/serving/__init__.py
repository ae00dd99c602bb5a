"""The speed of the server, beside extraction in one process on the same cores."""
