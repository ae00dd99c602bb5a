"""Token ids in, logits and keyphrase spans out."""
