"""The peer's networks in deployment: TorchScript and torch.compile, on the CPU, without pretrained weights.

    export_torch.py ARCHITECTURE ENCODER FOLDER BATCH...

Prints a line of JSON with `mib`, the size of the TorchScript file by precision; then, for each line
`WAY PRECISION BATCH STEPS` on standard input, one with the `images` per second and the `processor` (CPU) seconds per
image. WAY is torchscript (traced, frozen, optimized for inference) or compile (inductor, frozen weights); PRECISION is
float32 or bfloat16, for both weights and activations. Windows of 5 x 256 x 256, channels last, two
threads, input and output in float32.
"""

import sys
from functools import partial
from pathlib import Path

import torch
from models_torch import SIZE, SLICES, import_smp, rate, say, settle_normalization

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Probabilities(torch.nn.Module):
    def __init__(self, network, dtype):
        super().__init__()
        self.network, self.dtype = network.to(dtype), dtype

    def forward(self, windows):
        return torch.sigmoid(self.network(windows.to(self.dtype)).float())


def main(architecture, encoder, folder, *batches):
    import torch._inductor.config

    torch.set_num_threads(2)
    torch._inductor.config.freezing = True
    smp = import_smp()
    ways, sizes = {}, {}
    for precision, dtype in PRECISIONS.items():
        torch.manual_seed(0)
        network = getattr(smp, architecture)(encoder, encoder_weights=None, in_channels=SLICES, classes=3)
        settle_normalization(network)
        network = Probabilities(network.eval().to(memory_format=torch.channels_last), dtype).eval()
        with torch.no_grad():
            scripted = torch.jit.freeze(torch.jit.trace(network, windows(int(batches[0]))))
            path = Path(folder) / f"{precision}.pt"
            torch.jit.save(scripted, path)
            sizes[precision] = path.stat().st_size / 2**20
            ways["torchscript", precision] = torch.jit.optimize_for_inference(scripted)
        ways["compile", precision] = torch.compile(network, dynamic=False)
    given = {batch: windows(batch) for batch in map(int, batches)}
    with torch.no_grad():
        for way in ways.values():
            warm_up(way, given.values())
    say({"mib": sizes})
    for line in sys.stdin:
        way, precision, batch, steps = line.split()
        with torch.no_grad():
            image = given[int(batch)]
            say(rate(partial(ways[way, precision], image), int(steps), len(image)))


def windows(batch):
    return torch.rand(batch, SLICES, SIZE, SIZE).contiguous(memory_format=torch.channels_last)


def warm_up(way, images):
    for image in images:
        for _ in range(3):  # TorchScript rewrites the graph in its first calls
            way(image)


if __name__ == "__main__":
    main(*sys.argv[1:])
