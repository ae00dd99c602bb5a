"""Extraction over HTTP: one ASGI application around a bundle, with batching over requests. It needs the extra `serve`."""
