"""How many windows a second the exported network segments in process, against segmentation-models-pytorch deployed.

Windows of 5 x 256 x 256, 8 at a time and one at a time, random weights and statistics, two threads. Ours: the Keras
model under tf.function, and what `gitseg export` writes of it with weights in float32 and in bfloat16, loaded by
tf.saved_model.load and by the session loader, which is TensorFlow Serving's. The peer: TorchScript (traced, frozen,
optimised for inference, channels last) and torch.compile (inductor, weights frozen), in both precisions. One process a
side, all ways in turns. The claims are on the faster way of each to load the export and the faster of the peer's two,
float32 with float32 and bfloat16 with bfloat16; and on the slower way to load the export against the Keras model.
"""

import argparse
import json
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

from models import NETWORKS, SIZE, SLICES, Side, rate, say, settle_normalization

ROUNDS = 3
PEER = Path(__file__).parent / "peers" / "export_torch.py"
PRECISIONS = ("float32", "bfloat16")
KERAS, LOADED, SESSION = "keras", "loaded", "session"
OURS = {KERAS: "Keras, tf.function", LOADED: "export, tf.saved_model.load", SESSION: "export, session loader"}
PEERS = {"torchscript": "peer, TorchScript", "compile": "peer, torch.compile"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 windows at a time alone; under 3 minutes")
    parser.add_argument("--data", help="not used: the input is random")
    parser.add_argument("--peer-python", help="has torch and segmentation-models-pytorch; torch.compile needs g++")
    parser.add_argument("--network", choices=NETWORKS, default=next(iter(NETWORKS)), help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="(%(default)s)")
    parser.add_argument("--serve", nargs=3, metavar=("ARCHITECTURE", "BACKBONE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
        return
    if not options.peer_python:
        print("no --peer-python: the peer is not measured")
    batches = (8,) if options.quick else (8, 1)
    seen, sizes = measure(options, batches)
    print(f"{options.network}, windows of {SLICES} x {SIZE} x {SIZE}: images/s (processor ms)")
    print(f"{'':30}{'':10}{'MiB':>7}" + "".join(f"{f'batch {batch}':>16}" for batch in batches))
    for way, name in {**OURS, **PEERS}.items():
        for precision in PRECISIONS:
            if (way, precision) in sizes:
                cells = "".join(f"{cell(seen[way, precision, batch]):>16}" for batch in batches)
                print(f"{name:30}{precision:10}{sizes[way, precision]:7.1f}{cells}")
    print()
    for batch in batches:
        for precision in PRECISIONS:
            for claim in claims(options.network, seen, precision, batch):
                print(json.dumps(claim))


def measure(options, batches):
    """What was measured, {(way, precision, batch): [answers]}, and MiB by (way, precision)."""
    ours, peer = NETWORKS[options.network]
    with tempfile.TemporaryDirectory() as folder:
        sides = [(Side([sys.executable, __file__, "--serve", *ours, folder]), OURS)]
        if options.peer_python:
            sides.append((Side([options.peer_python, str(PEER), *peer, folder, *map(str, batches)]), PEERS))
        sizes = {(way, p): side.facts["mib"][p] for side, ways in sides for way in ways for p in PRECISIONS}
        seen = {(*key, batch): [] for key in sizes for batch in batches}
        try:
            for _ in range(options.rounds):
                for batch in batches:
                    for precision in PRECISIONS:
                        for side, ways in sides:
                            for way in ways:
                                answer = side.ask(f"{way} {precision} {batch} {24 // batch}")
                                seen[way, precision, batch].append(answer)
        finally:
            for side, _ in sides:
                side.close()
    return seen, sizes


def cell(measured):
    return f"{median(measured):.2f} ({1e3 * median(measured, 'processor'):.0f})"


def median(measured, key="images"):
    return statistics.median(one[key] for one in measured)


def claims(network, seen, precision, batch):
    rates = {way: median(seen[way, precision, batch]) for way in (*OURS, *PEERS) if (way, precision, batch) in seen}
    exported, peers = (rates[LOADED], rates[SESSION]), [rates[way] for way in PEERS if way in rates]
    what = f"{network}, {precision}, batch {batch}: export"
    yield claim(f"{what} against the Keras model", min(exported), rates[KERAS])
    yield claim(f"{what} against the peer, the faster way of each", max(exported), max(peers, default=None))


def claim(what, ours, peer):
    ratio = peer and round(ours / peer, 2)
    return {"claim": what, "ours": round(ours, 2), "peer": peer and round(peer, 2), "unit": "images/s", "ratio": ratio}


def serve(architecture, backbone, folder):
    """Ours, as peers/export_torch.py does it: the sizes, then an answer to each line of the standard input."""
    from gitseg_tf.serving.export import PRECISIONS as POLICIES
    from gitseg_tf.serving.export import export

    run, ways, sizes = untrained(architecture, backbone, Path(folder)), {}, {}
    for precision in PRECISIONS:
        exported = export(run, Path(folder) / precision, weights=precision, say=lambda line: None)
        sizes[precision] = (exported / "saved_model.pb").stat().st_size / 2**20
        ways[KERAS, precision] = keras_model(run, POLICIES[precision])
        ways[LOADED, precision] = loaded(exported)
        ways[SESSION, precision] = session(exported)
    say({"mib": sizes})
    for line in sys.stdin:
        way, precision, batch, steps = line.split()
        say(rate(ways[way, precision](int(batch)), int(steps), int(batch)))


def untrained(architecture, backbone, folder):
    from gitseg_tf.config import load_config, save_config
    from gitseg_tf.models.build import build_model
    from gitseg_tf.training.callbacks import best_weights_path, write_history
    from gitseg_tf.training.trainer import load_run

    run = folder / "run"
    (run / "checkpoints").mkdir(parents=True)
    chosen = {"model.architecture": architecture, "model.backbone": backbone, "training.epochs": 1}
    config = load_config(None, chosen | {"data.size": [SIZE, SIZE], "data.slices": SLICES})
    model = build_model(config)
    settle_normalization(model)
    model.save_weights(str(best_weights_path(run)))
    save_config(config, run / "config.yaml")
    write_history(run, [{"epoch": 1, "loss": 1.0}])
    return load_run(run)


def keras_model(run, policy):
    """Function of a number of windows to a step that segments so many."""
    import tensorflow as tf

    from gitseg_tf.training.trainer import load_model

    model = load_model(run, policy)
    network = tf.function(lambda windows: tf.sigmoid(model(windows, training=False)))
    return lambda batch: step(network, windows(batch))


def loaded(exported):
    import tensorflow as tf

    network = tf.saved_model.load(str(exported)).signatures["serving_default"]
    return lambda batch: step(lambda image: network(windows=image)["probabilities"], windows(batch))


def step(network, image):
    import tensorflow as tf

    image = tf.constant(image)
    return lambda: network(image).numpy()


def session(exported):
    import tensorflow as tf

    running = tf.compat.v1.Session(graph=tf.Graph())
    with running.graph.as_default():
        signatures = tf.compat.v1.saved_model.load(running, ["serve"], str(exported)).signature_def
    signature = signatures["serving_default"]
    run = running.make_callable(signature.outputs["probabilities"].name, feed_list=[signature.inputs["windows"].name])
    return lambda batch: partial(run, windows(batch))


def windows(batch):
    import numpy as np

    return np.random.default_rng(0).random((batch, SIZE, SIZE, SLICES), np.float32)


if __name__ == "__main__":
    main()
