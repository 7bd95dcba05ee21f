"""Labels agents' statements with a grader model. A trial's outcome never depends on these labels."""
