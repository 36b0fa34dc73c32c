"""The peer's networks: segmentation-models-pytorch on the CPU, without pretrained weights.

    models_torch.py ARCHITECTURE ENCODER

Prints a line of JSON with `parameters` and `gflops` for one window, where a multiply-add counts as two; then, for each
line `train STEPS` or `infer STEPS` on standard input, one with the `images` per second and `processor` (CPU) seconds
per image: 8 windows of 5 x 256 x 256 in float32, channels last, two threads, AdamW and binary cross-entropy.
"""

import json
import sys
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

BATCH, SLICES, SIZE = 8, 5, 256


def import_smp():
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        # A torchvision built for another torch registers none of its operators, but the networks do not need them.
        operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        import_smp.operators = operators
    import segmentation_models_pytorch

    return segmentation_models_pytorch


def settle_normalization(network):
    """Set statistics as in a trained network."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.normal_(module.bias, std=0.1)


def main(architecture, encoder):
    torch.set_num_threads(2)
    torch.manual_seed(0)
    network = getattr(import_smp(), architecture)(encoder, encoder_weights=None, in_channels=SLICES, classes=3)
    network = network.to(memory_format=torch.channels_last)
    settle_normalization(network)
    image = torch.rand(BATCH, SLICES, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    mask = (torch.rand(BATCH, 3, SIZE, SIZE) > 0.5).float()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    cross_entropy = torch.nn.BCEWithLogitsLoss()

    def train():
        optimizer.zero_grad()
        cross_entropy(network(image), mask).backward()
        optimizer.step()

    def infer():
        with torch.inference_mode():
            torch.sigmoid(network(image))

    network.eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(image[:1])
    parameters = sum(p.numel() for p in network.parameters())
    say({"parameters": parameters, "gflops": counter.get_total_flops() / 1e9})
    for line in sys.stdin:
        what, steps = line.split()
        network.train(what == "train")
        say(rate({"train": train, "infer": infer}[what], int(steps)))


def rate(step, steps, batch=BATCH):
    step()
    start, processor = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    images = batch * steps
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    return {"images": images / seconds, "processor": processor / images}


def say(line):
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
