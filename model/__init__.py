"""What is learned: the tagger, its data, its loss and its metrics; torch and files, no Ray."""
