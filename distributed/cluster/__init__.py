"""What the cluster has, what it may become and what it grants."""
