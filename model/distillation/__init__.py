"""A teacher's labels: a bundle writes them for unlabeled texts, and a student learns from them."""
