"""The cluster: its resources, its autoscaler and Ray's interfaces to it."""
