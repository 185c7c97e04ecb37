"""Training a CLIP on tars of images with texts.

`options` and `command` are light; the other modules import torch at their top and are imported when a training starts.
"""
