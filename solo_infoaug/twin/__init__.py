"""The twin branch, and its two doors into solo-learn."""
