"""Tandem on Ray: everything that knows of clusters, workers and trackers, and no science.

Not the Dask package of this name: the project is run from its root (`python -m jobs ...`) and never installed.
"""
