"""Training and inference throughput of the networks, compared with segmentation-models-pytorch.

Both sides: 8 windows of 5 x 256 x 256, random weights, AdamW and binary cross-entropy, two threads, channels last,
input in memory. One process per side and network, measured alternately, so that the other side waits. The claims
compare float32 on both sides; our mixed_bfloat16, which `--precision auto` selects on CPUs with bfloat16 instructions,
is printed too.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 3
BATCH, SLICES, SIZE = 8, 5, 256
PEER = Path(__file__).parent / "peers" / "models_torch.py"
# Name to (architecture, backbone) of our network and of the peer's.
NETWORKS = {
    "U-Net ResNet-34": (("unet", "resnet34"), ("Unet", "resnet34")),
    "U-Net EfficientNetV2-B0, the peer's EfficientNet-B0": (
        ("unet", "efficientnetv2_b0"),
        ("Unet", "efficientnet-b0"),
    ),
    "DeepLabV3+ ResNet-50": (("deeplabv3plus", "resnet50"), ("DeepLabV3Plus", "resnet50")),
}
PRECISIONS = ("float32", "mixed_bfloat16")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only U-Net ResNet-34 in float32; under 3 minutes")
    parser.add_argument("--data", help="not used: the input is random")
    parser.add_argument("--peer-python", help="a Python with torch and segmentation-models-pytorch")
    parser.add_argument("--network", choices=NETWORKS, help="only this network")
    parser.add_argument("--steps", type=int, help="training steps per round; three times as many inference steps")
    parser.add_argument("--serve", nargs=3, metavar=("ARCHITECTURE", "BACKBONE", "PRECISION"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
        return
    if not options.peer_python:
        print("without --peer-python, the peer is not measured")
    names = [options.network] if options.network else list(NETWORKS)[: 1 if options.quick else None]
    print(f"{'':24}{'parameters':>12}{'GFLOPs':>9}{'training':>10}{'inference':>11}   images/s (CPU ms)")
    claims = [claim for name in names for claim in compare(name, options)]
    print()
    for claim in claims:
        print(json.dumps(claim))


def compare(name, options):
    (architecture, backbone), peer = NETWORKS[name]
    commands = {
        precision: [sys.executable, __file__, "--serve", architecture, backbone, precision]
        for precision in PRECISIONS[: 1 if options.quick else None]
    }
    if options.peer_python:
        commands["peer"] = [options.peer_python, str(PEER), *peer]
    sides = {side: Side(command) for side, command in commands.items()}
    steps = options.steps or (2 if options.quick else 5)
    try:
        rounds = [
            {(side, what): process.ask(f"{what} {n}") for side, process in sides.items()}
            for _ in range(ROUNDS)
            for what, n in (("train", steps), ("infer", 3 * steps))
        ]
    finally:
        for process in sides.values():
            process.close()
    seen = {key: [one[key] for one in rounds if key in one] for one in rounds for key in one}
    print(name)
    for side, process in sides.items():
        cells = [cell(seen[side, what]) for what in ("train", "infer")]
        size, work = process.facts["parameters"] / 1e6, process.facts["gflops"]
        print(f"  {side:22}{size:11.2f}M{work:9.1f}   {'   '.join(cells)}")
    return [claim(name, what, word, seen) for what, word in (("train", "training"), ("infer", "inference"))]


def cell(measured):
    rate, processor = (statistics.median(one[key] for one in measured) for key in ("images", "processor"))
    return f"{rate:6.2f} ({1e3 * processor:.0f})"


def claim(name, what, word, seen):
    ours, peer = (
        statistics.median(one["images"] for one in seen[side, what]) if (side, what) in seen else None
        for side in ("float32", "peer")
    )
    return {
        "claim": f"{name}, {word}",
        "ours": round(ours, 2),
        "peer": peer and round(peer, 2),
        "unit": "images/s",
        "ratio": peer and round(ours / peer, 2),
    }


class Side:
    """A process that measures on request and sleeps otherwise."""

    def __init__(self, command):
        self.command = command
        # These variables are for TensorFlow; the peer sets its threads itself.
        two_threads = os.environ | {"TF_NUM_INTRAOP_THREADS": "2", "TF_NUM_INTEROP_THREADS": "2"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=two_threads
        )
        self.facts = self._answer()

    def ask(self, line):
        time.sleep(1)  # the other side's threads may still be spinning
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self):
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        sys.exit(f"{' '.join(self.command)} ended with exit status {self.process.wait()}")

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def serve(architecture, backbone, precision):
    """Serve our side with the protocol of peers/models_torch.py: facts, then an answer to each input line."""
    model, flops = network(architecture, backbone, precision)
    parameters = sum(variable.shape.num_elements() for variable in model.trainable_variables)
    steps = steps_of(model, network(architecture, backbone, precision)[0])
    say({"parameters": parameters, "gflops": flops / 1e9})
    for line in sys.stdin:
        what, count = line.split()
        say(rate(steps[what], int(count)))


def network(architecture, backbone, precision):
    from gitseg_tf.config import load_config
    from gitseg_tf.labels import UWMGI
    from gitseg_tf.models.build import build_model
    from gitseg_tf.models.cost import flops

    chosen = {"model.architecture": architecture, "model.backbone": backbone}
    config = load_config(None, chosen | {"data.input_size": [SIZE, SIZE], "data.window_slices": SLICES})
    model = build_model(config.for_dataset(UWMGI, ("mr",)), precision)
    settle_normalization(model)
    return model, flops(model)


def settle_normalization(model):
    """Set statistics as in a trained network: with means and betas of 0 there would be no bias to fuse."""
    import tf_keras as keras

    draw = keras.initializers.RandomNormal(stddev=0.1, seed=0)
    for layer in model.submodules:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(draw(layer.moving_mean.shape))
            layer.beta.assign(draw(layer.beta.shape))


def steps_of(model, predicting):
    """Build a training step of one network, and a prediction step of another."""
    import tensorflow as tf

    from gitseg_tf.models.freezing.freeze import inference_network

    image, mask = tf.random.uniform([BATCH, SIZE, SIZE, SLICES]), tf.round(tf.random.uniform([BATCH, SIZE, SIZE, 3]))
    segment = inference_network(predicting)
    return {"train": training_step(model, image, mask), "infer": lambda: segment(image).numpy()}


def training_step(model, image, mask):
    """Build the step of model.fit, always on the same batch."""
    import itertools

    import tf_keras as keras

    model.compile(keras.optimizers.AdamW(1e-3), keras.losses.BinaryCrossentropy(from_logits=True))
    step, batches = model.make_train_function(), itertools.repeat((image, mask))
    return lambda: step(batches)["loss"].numpy()


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
    main()
