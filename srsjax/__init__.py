"""srsjax: BERT click models for search and recommendation on GPU and TPU meshes, in JAX."""

__version__ = "0.1.0"
