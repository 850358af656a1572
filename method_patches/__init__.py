"""What is special about single solo-learn methods, one small module a method."""
