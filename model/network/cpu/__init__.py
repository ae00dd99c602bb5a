"""The recurrent layer on a CPU; each kernel has torch's own as its oracle."""
