"""The base of classes that are mixed into a method; `method.pyi` declares what a method has."""

Method = object
