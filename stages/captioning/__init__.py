"""Captioning: candidates of an image-to-text model, what they may say, their ranks, and the facts beside them."""
