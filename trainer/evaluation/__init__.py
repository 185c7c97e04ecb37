"""Judging a CLIP: zero-shot classification, retrieval and semantic localisation, as the field measures them."""
