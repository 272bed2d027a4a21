"""A model as a serialized program that needs JAX alone."""
