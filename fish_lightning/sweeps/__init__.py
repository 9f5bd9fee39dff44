"""Many runs from one command: sweepers for Hydra's multirun, pruning, and the table of a sweep."""
