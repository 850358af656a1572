"""The twin branch, and how solo-learn comes to know it."""
