"""What a person or `ray job submit` runs: `python -m jobs COMMAND`."""
