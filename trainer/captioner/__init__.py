"""Fine-tuning of image-to-text models: LoRA for BLIP2, as RS5M's captioner was made (arXiv 2306.11300 §III-B)."""
