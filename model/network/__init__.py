"""The network: from token ids to logits, and from logits to keyphrases."""
