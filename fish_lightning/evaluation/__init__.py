"""Statistics of a model's answers, computed from arrays alone and counted by photograph."""
