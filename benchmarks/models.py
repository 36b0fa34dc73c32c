"""How many windows a second the networks train on and segment, against segmentation-models-pytorch.

Both sides: 8 windows of 5 x 256 x 256, random weights, AdamW and binary cross-entropy, two threads, channels last, the
input in memory. One process a side and network, measured in turns, so that the other side waits. The claims are on
float32 of both; ours in mixed_bfloat16, which `--precision auto` takes on processors that have it, is printed too.
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
# Name: architecture and backbone of ours, then of the peer's.
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
    parser.add_argument("--quick", action="store_true", help="U-Net ResNet-34 in float32 alone; under 3 minutes")
    parser.add_argument("--data", help="not used: the input is random")
    parser.add_argument("--peer-python", help="has torch and segmentation-models-pytorch")
    parser.add_argument("--network", choices=NETWORKS, help="this one alone")
    parser.add_argument("--steps", type=int, help="training steps a round; three times as many of inference")
    parser.add_argument("--serve", nargs=3, metavar=("ARCHITECTURE", "BACKBONE", "PRECISION"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
        return
    if not options.peer_python:
        print("no --peer-python: the peer is not measured")
    names = [options.network] if options.network else list(NETWORKS)[: 1 if options.quick else None]
    print(f"{'':24}{'parameters':>12}{'GFLOPs':>9}{'training':>10}{'inference':>11}   images/s (processor ms)")
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
    """A process that measures when it is asked and sleeps otherwise."""

    def __init__(self, command):
        self.command = command
        # TensorFlow's; the peer sets its own.
        two_threads = os.environ | {"TF_NUM_INTRAOP_THREADS": "2", "TF_NUM_INTEROP_THREADS": "2"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=two_threads
        )
        self.facts = self._answer()

    def ask(self, line):
        time.sleep(1)  # the other side's threads may still spin
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
    """Ours, as peers/models_torch.py does it: facts, then an answer to each line of the standard input."""
    model, flops = network(architecture, backbone, precision)
    parameters = sum(variable.shape.num_elements() for variable in model.trainable_variables)
    steps = steps_of(model, network(architecture, backbone, precision)[0])
    say({"parameters": parameters, "gflops": flops / 1e9})
    for line in sys.stdin:
        what, count = line.split()
        say(rate(steps[what], int(count)))


def network(architecture, backbone, precision):
    from gitseg_tf.config import load_config
    from gitseg_tf.models.build import build_model
    from gitseg_tf.models.table import flops

    chosen = {"model.architecture": architecture, "model.backbone": backbone}
    model = build_model(load_config(None, chosen | {"data.size": [SIZE, SIZE], "data.slices": SLICES}), precision)
    settle_normalization(model)
    return model, flops(model)


def settle_normalization(model):
    """Statistics as of a trained network: of means and betas of 0 no bias is left, nor what is joined with biases."""
    import tf_keras as keras

    draw = keras.initializers.RandomNormal(stddev=0.1, seed=0)
    for layer in model.submodules:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(draw(layer.moving_mean.shape))
            layer.beta.assign(draw(layer.beta.shape))


def steps_of(model, predicting):
    """Steps of training one network, and of predicting with another."""
    import tensorflow as tf

    from gitseg_tf.models.frozen import inference_network

    image, mask = tf.random.uniform([BATCH, SIZE, SIZE, SLICES]), tf.round(tf.random.uniform([BATCH, SIZE, SIZE, 3]))
    segment = inference_network(predicting)
    return {"train": training_step(model, image, mask), "infer": lambda: segment(image).numpy()}


def training_step(model, image, mask):
    """The step of model.fit, on the same batch each time."""
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
