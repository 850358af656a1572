"""What is special about single solo-learn methods, one small module a method.

A "patch" in this folder's name adapts a method; elsewhere a patch is a piece of an image, and in
`upstream/` a change to solo-learn.
"""
