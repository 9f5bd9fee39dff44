"""Statistics of a model's answers, counted by photograph, and the readers of run folders that they come from."""
