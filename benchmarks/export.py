"""Throughput of the exported network in-process, compared with segmentation-models-pytorch deployed.

Windows of 5 x 256 x 256 in batches of 8 and 1, random weights and statistics, two threads. Ours: the Keras model in
tf.function, and the output of `gitseg export` with float32 and bfloat16 weights, loaded with tf.saved_model.load and
with the session loader, which TensorFlow Serving uses. The peer: TorchScript (traced, frozen, optimized for inference,
channels last) and torch.compile (inductor, frozen weights), in both precisions. One process per side, measured
alternately. The claims compare the faster way to load the export with the faster variant of the peer, in the same
precision, and the slower way to load the export with the Keras model.
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
    parser.add_argument("--quick", action="store_true", help="batches of 8 only; under 3 minutes")
    parser.add_argument("--data", help="not used: the input is random")
    parser.add_argument(
        "--peer-python", help="a Python with torch and segmentation-models-pytorch; torch.compile needs g++"
    )
    parser.add_argument("--network", choices=NETWORKS, default=next(iter(NETWORKS)), help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="(%(default)s)")
    parser.add_argument("--serve", nargs=3, metavar=("ARCHITECTURE", "BACKBONE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
        return
    if not options.peer_python:
        print("without --peer-python, the peer is not measured")
    batches = (8,) if options.quick else (8, 1)
    seen, sizes = measure(options, batches)
    print(f"{options.network}, windows of {SLICES} x {SIZE} x {SIZE}: images/s (CPU ms)")
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
    """Return measurements, {(way, precision, batch): [answers]}, and MiB by (way, precision)."""
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
    """Serve our side with the protocol of peers/export_torch.py: the sizes, then an answer to each input line."""
    from gitseg_tf.export.savedmodel import PRECISIONS as POLICIES
    from gitseg_tf.export.savedmodel import export

    run, ways, sizes = untrained(architecture, backbone, Path(folder)), {}, {}
    for precision in PRECISIONS:
        exported = export(run, Path(folder) / precision, weights=precision)
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
    from gitseg_tf.labels import UWMGI
    from gitseg_tf.models.build import build_model
    from gitseg_tf.runs.folder import best_weights_path
    from gitseg_tf.runs.run import load_run
    from gitseg_tf.training.callbacks.recorder import write_history

    run = folder / "run"
    (run / "checkpoints").mkdir(parents=True)
    chosen = {"model.architecture": architecture, "model.backbone": backbone, "training.epochs": 1}
    config = load_config(None, chosen | {"data.input_size": [SIZE, SIZE], "data.window_slices": SLICES})
    config = config.for_dataset(UWMGI, ("mr",))
    model = build_model(config)
    settle_normalization(model)
    model.save_weights(str(best_weights_path(run)))
    save_config(config, run / "config.yaml")
    write_history(run, [{"epoch": 1, "loss": 1.0}])
    return load_run(run)


def keras_model(run, policy):
    """Build a function from a batch size to a step that segments one batch."""
    import tensorflow as tf

    from gitseg_tf.runs.network import load_model

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
