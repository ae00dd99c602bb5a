"""A labeled text as tokens, labels and tensors."""
