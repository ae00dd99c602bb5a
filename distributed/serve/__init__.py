"""The HTTP application on Ray Serve: several replicas, on this machine or on a cluster."""
