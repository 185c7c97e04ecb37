"""Parameter-efficient fine-tuning of open_clip's transformers: LoRA, Pfeiffer adapters, prefix tuning, UniPELT."""

from trainer.adapters.attach import Report, apply, load_trainable, merge, trainable_state
from trainer.adapters.files import NAME, attach_saved, is_saved, save
from trainer.adapters.options import KINDS, TOWERS, PeftOptions

__all__ = [
    "KINDS",
    "NAME",
    "TOWERS",
    "PeftOptions",
    "Report",
    "apply",
    "attach_saved",
    "is_saved",
    "load_trainable",
    "merge",
    "save",
    "trainable_state",
]
