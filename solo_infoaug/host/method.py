"""The class that what is mixed into a method extends; `method.pyi` says what a method has."""

Method = object
