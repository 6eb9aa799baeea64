"""The HTTP surface, one module a topic."""
