"""The files and tables that a run, an evaluation, a prediction or ``prepare`` writes."""
