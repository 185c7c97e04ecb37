"""`python -m trainer.train`: train a CLIP on tars of images with texts."""

import sys

from trainer.training.command import main

if __name__ == "__main__":
    sys.exit(main())
