"""Experiments: what curation does to the model that learns from it, and recipes to repeat it at scale."""
