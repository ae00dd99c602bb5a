"""`python -m jobs distil`: a teacher, its labels, students, and how they compare."""
