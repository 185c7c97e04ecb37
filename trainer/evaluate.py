"""`python -m trainer.evaluate`: judge a CLIP as the field does."""

import sys

from trainer.evaluation.command import main

if __name__ == "__main__":
    sys.exit(main())
