"""The recurrent layer on a CPU; torch's own layers are the oracle of every kernel."""
