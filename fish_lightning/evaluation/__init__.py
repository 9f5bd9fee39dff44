"""What a model's answers are worth, computed from arrays: scores and their intervals."""
