"""Candidates a second: all of an image's candidates from one encoding, in batches, beside one sample at a time.

The other way is what an image-captioning mapper does that calls `generate` for each sample (Data-Juicer's, for one):
one image, one caption a call, the image encoded anew each time. Both ways have the same model, images and options.

    python -m benchmarks.captions                        # a small BLIP2, on the CPU
    python -m benchmarks.captions --model blip2-opt-2.7b --device cuda --precision fp16 --images 32 --batch 8 --share 16
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from demo.captioner import new_tokenizer
from stages import vision
from stages.captioning.candidates import write_batches
from stages.captioning.generator import Captioner, Inputs, Options
from stages.models import ModelRef

SMALL = {
    "vision": {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4},
    "qformer": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4},
    "text": {"hidden_size": 192, "word_embed_proj_dim": 192, "ffn_dim": 768, "num_hidden_layers": 4},
    "heads": 4,
    "vocabulary": 8192,
}
OPT_2_7B = {
    "vision": {},
    "qformer": {},
    "text": {"hidden_size": 2560, "word_embed_proj_dim": 2560, "ffn_dim": 10240, "num_hidden_layers": 32},
    "heads": 32,
    "vocabulary": 50304,
}
"""The shape of Salesforce/blip2-opt-2.7b: transformers' own defaults for vision and Q-Former, OPT 2.7B."""
CLOCKS = ("the clock", "processor time")
"""Of the second, all threads together; other work on the machine slows the first alone."""
SHAPES: dict[str, dict[str, Any]] = {"small": SMALL, "blip2-opt-2.7b": OPT_2_7B}


def main() -> None:
    args = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        parameters = make(Path(folder), args.model, args.device, args.precision)
        ref = ModelRef(library="transformers", where="benchmark", model=folder)
        captioner = Captioner(ref=ref, adapter=None, device=args.device, threads=args.threads)
        ours, theirs = [], []
        calls = range(max(1, args.images // args.share) * args.candidates)
        inputs = _inputs(captioner, args.images)
        many = Options(candidates=args.candidates, max_tokens=args.tokens, precision=args.precision)
        write = captioner.load(many)
        single = _one_at_a_time(captioner, args)
        names = [f"image {n}" for n in range(args.images)]
        write_batches(write, args.batch, inputs[: args.batch], names[: args.batch])
        single(inputs[0])
        for _ in range(args.runs):
            ours.append(_rates(args.images * args.candidates, lambda: write_batches(write, args.batch, inputs, names)))
            theirs.append(_rates(len(calls), lambda: [single(inputs[n // args.candidates]) for n in calls]))
    print(f"model: {args.model}, {parameters / 1e6:,.0f} M parameters, random weights, {args.precision}")
    print(f"{args.images} images, {args.candidates} candidates of {args.tokens} tokens, batches of {args.batch} images")
    for number, clock in enumerate(CLOCKS):
        mine, other = ([rates[number] for rates in found] for found in (ours, theirs))
        ratios = sorted(a / b for a, b in zip(mine, other, strict=True))
        print(
            f"candidates a second of {clock}: {statistics.median(mine):,.1f} from one encoding in batches, "
            f"{statistics.median(other):,.1f} one sample at a time; ratio {statistics.median(ratios):.1f} "
            f"({ratios[0]:.1f} to {ratios[-1]:.1f}, median of {args.runs} turns)"
        )
    print(f"memory: {_memory(args.device)}")
    print(f"machine: {_machine(args.device)}, {args.threads} threads")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SHAPES), default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--share", type=int, default=4, help="one sample at a time gets this part of the images")
    return parser.parse_args()


def make(folder: Path, name: str, device: str, precision: str) -> int:
    """A BLIP2 of that shape with random weights, in transformers' format at that precision; returns its parameters."""
    import torch
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        BlipImageProcessor,
        OPTConfig,
    )

    shape, tokenizer = SHAPES[name], new_tokenizer()
    visual = Blip2VisionConfig(image_size=224, initializer_range=0.02, **shape["vision"])
    config = Blip2Config(
        vision_config=visual,
        qformer_config=Blip2QFormerConfig(encoder_hidden_size=visual.hidden_size, **shape["qformer"]),
        text_config=OPTConfig(
            vocab_size=shape["vocabulary"],
            num_attention_heads=shape["heads"],
            eos_token_id=2,
            bos_token_id=1,
            pad_token_id=0,
            **shape["text"],
        ),
        image_token_index=3,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(vision.dtype_of(precision))  # in float32 the large one would not fit beside its copies
    with torch.device(device):
        model = Blip2ForConditionalGeneration(config).eval()
    torch.set_default_dtype(torch.float32)
    # No candidate may end early: both ways must write the same number of tokens.
    model.generation_config.eos_token_id = None
    model.language_model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    BlipImageProcessor(size={"height": 224, "width": 224}).save_pretrained(folder)
    return int(model.num_parameters())


def _inputs(captioner: Captioner, images: int) -> list[Inputs]:
    from PIL import Image

    process = captioner.processor(None)
    noise = np.random.default_rng(0).integers(0, 256, (images, 256, 256, 3), dtype=np.uint8)
    return [process(Image.fromarray(pixels)) for pixels in noise]


def _one_at_a_time(captioner: Captioner, args: argparse.Namespace) -> Callable[[Inputs], Any]:
    """One image in, one sample out, by the library's own sampling."""
    import torch

    model, tokenizer = captioner.open(args.device, args.precision)

    @torch.inference_mode()
    def single(inputs: Inputs) -> Any:
        pixels = torch.from_numpy(inputs["pixel_values"]).to(args.device, vision.dtype_of(args.precision))
        found = model.generate(pixel_values=pixels, do_sample=True, top_k=50, top_p=0.95, max_new_tokens=args.tokens)
        return tokenizer.batch_decode(found, skip_special_tokens=True)

    return single


def _rates(candidates: int, work: Callable[[], Any]) -> tuple[float, float]:
    """Candidates a second, by each of CLOCKS."""
    began, used = time.perf_counter(), time.process_time()
    work()
    return candidates / (time.perf_counter() - began), candidates / (time.process_time() - used)


def _memory(device: str) -> str:
    import torch

    if device == "cuda":
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of the GPU at most, two copies of the model"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB at most, two copies of the model"


def _machine(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
