"""The spine: recipes, units, commits, manifests, scheduling, reports."""

__version__ = "0.1.0"
