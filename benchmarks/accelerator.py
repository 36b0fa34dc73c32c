"""Speed and memory of mixed precision and XLA on a GPU: training images/s and peak memory of several networks.

    python benchmarks/accelerator.py [--quick] [--batch-size 16]

Each row runs in its own process: the package's training step (random weights, default loss and optimizer) on one batch
in memory, after two warm-up steps. The claims compare with float32 without XLA in the same run. Without a GPU, --cpu
measures the CPU; memory is then that of the process.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

NETWORKS = {
    "U-Net ResNet-34": {"model.backbone": "resnet34"},
    "U-Net EfficientNetV2-S": {"model.backbone": "efficientnetv2_s"},
    "DeepLabV3+ ResNet-50": {"model.architecture": "deeplabv3plus", "model.backbone": "resnet50"},
    "residual 3-D U-Net": {"model.architecture": "residual_unet3d", "model.filters": 32},
}
MODES = [
    ("float32", False),
    ("float32", True),
    ("mixed_float16", False),
    ("mixed_float16", True),
    ("mixed_bfloat16", False),
    ("mixed_bfloat16", True),
]
ROUNDS = 3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="U-Net ResNet-34 only, fewer steps")
    parser.add_argument("--data", help="not used: the input is random")
    parser.add_argument("--peer-python", help="not used: the baseline is float32 without XLA")
    parser.add_argument(
        "--batch-size", type=int, default=16, help="windows per step (%(default)s); an eighth as many patches"
    )
    parser.add_argument("--size", type=int, default=320, help="height and width, multiples of 32 (%(default)s)")
    parser.add_argument("--steps", type=int, help="steps per round (20, quick: 5)")
    parser.add_argument("--cpu", action="store_true", help="measure the CPU if there is no GPU")
    parser.add_argument("--measure", nargs=3, metavar=("NETWORK", "PRECISION", "XLA"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.steps = options.steps or (5 if options.quick else 20)
    if options.measure:
        print(json.dumps(measure(*options.measure, options)))
        return
    print(f"{'network':24}{'precision':>16}{'XLA':>5}{'images/s':>10}{'peak MiB':>10}")
    claims = []
    for name in list(NETWORKS)[: 1 if options.quick else None]:
        rows = {mode: in_a_process(name, *mode, options) for mode in MODES}
        plain = rows[MODES[0]]["rate"]
        for (precision, xla), row in rows.items():
            print(
                f"{name:24}{precision:>16}{'yes' if xla else 'no':>5}{row['rate']:10.1f}{row['mib']:10.0f}", flush=True
            )
            claim = {"claim": f"{name}, training in {precision}{' with XLA' if xla else ''} against float32 without"}
            ratio = round(row["rate"] / plain, 2)
            claims.append(claim | {"ours": row["rate"], "peer": plain, "unit": "images/s", "ratio": ratio})
    print()
    for claim in claims:
        print(json.dumps(claim))


def in_a_process(name, precision, xla, options):
    command = [sys.executable, __file__, "--measure", name, precision, str(int(xla)), "--steps", options.steps]
    command += ["--batch-size", options.batch_size, "--size", options.size, *(["--cpu"] if options.cpu else [])]
    done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{name}, {precision}: failed with exit status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(name, precision, xla, options):
    """Measure images/s, the median over rounds, and peak memory in MiB."""
    import itertools

    import tensorflow as tf

    from gitseg_tf.config import load_config
    from gitseg_tf.labels import UWMGI
    from gitseg_tf.models.build import build_model
    from gitseg_tf.training.step import training_model

    gpus = tf.config.list_physical_devices("GPU")
    if not gpus and not options.cpu:
        sys.exit("no GPU found; use --cpu to measure the CPU")
    batch, data = options.batch_size, {"data.input_size": [options.size, options.size], "data.window_slices": 5}
    if "3-D" in name:
        batch, data = max(batch // 8, 1), data | {"data.patch": [32, 160, 160]}
    config = load_config(None, NETWORKS[name] | data | {"training.jit_compile": xla == "1"})
    config = config.for_dataset(UWMGI, ("mr",))
    model = training_model(build_model(config, precision), config, 1000)
    image = tf.random.uniform([batch, *model.input_shape[1:]])
    mask = tf.cast(tf.random.uniform([*image.shape[:-1], len(UWMGI)]) < 0.1, tf.float32)
    step, batches = model.make_train_function(), itertools.repeat((image, mask))
    for _ in range(2):
        step(batches)["loss"].numpy()
    rates = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(options.steps):
            result = step(batches)
        result["loss"].numpy()
        rates.append(batch * options.steps / (time.perf_counter() - start))
    return {"rate": round(statistics.median(rates), 2), "mib": peak_mib(gpus)}


def peak_mib(gpus):
    import resource

    import tensorflow as tf

    if gpus:
        return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    main()
