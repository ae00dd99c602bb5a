"""A labelled text as tokens, labels and tensors."""
