"""nnU-Net 2.8 for a given time on the CPU: its planning, preprocessing, network, loss, augmentation and inference.

    nnunet_timed.py TRAINING TEST OUT --work DIR [--minutes 20] [--seed 0] [--configuration 3d_fullres]

TRAINING and TEST are folders in nnU-Net's raw layout. The network trains on all cases of TRAINING, with nnU-Net's
polynomial learning rate over the elapsed time instead of over 1,000 epochs, and without its online validation. The
minutes are training time: they begin with the first batch. Images of TEST are predicted with nnU-Net's defaults
(sliding window, Gaussian weights, mirroring) into OUT. DIR keeps the plan and the preprocessed cases for further
trainings. The last line is JSON: steps, minutes. Needs torch 2.13 and nnunetv2 2.8.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

NAME = "Dataset999_Peer"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("training", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--configuration", default="3d_fullres")
    options = parser.parse_args()
    # nnU-Net reads these when it is imported.
    folders = {f"nnUNet_{name}": str(options.work / name) for name in ("raw", "preprocessed", "results")}
    os.environ.update(folders | {"nnUNet_n_proc_DA": "2", "nnUNet_def_n_proc": "2"})
    plan(options)
    trainer, minutes = train(options)
    predict(trainer, options)
    print(json.dumps({"steps": trainer.steps, "minutes": round(minutes, 2), "seed": options.seed}), flush=True)
    end_children()
    os._exit(0)  # threads of the loader do not end by themselves


def plan(options):
    """Plan and preprocess, unless this was done for an earlier training."""
    finished = options.work / "planned"
    if finished.exists():
        return
    shutil.rmtree(options.work, ignore_errors=True)
    for name in ("raw", "preprocessed", "results"):
        (options.work / name).mkdir(parents=True)
    shutil.copytree(options.training, options.work / "raw" / NAME)
    program = Path(sys.executable).parent / "nnUNetv2_plan_and_preprocess"
    command = [str(program), "-d", "999", "-c", options.configuration, "-np", "2", "-npfp", "2"]
    subprocess.run(command, check=True)
    finished.touch()


def train(options):
    """Train for the given time; return the trainer and the minutes of training."""
    import numpy as np
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    random.seed(options.seed)
    np.random.seed(options.seed)
    torch.manual_seed(options.seed)
    torch.set_num_threads(2)

    class TimedTrainer(nnUNetTrainer):
        """Trains for a time, not for a number of epochs."""

        def run_training(self):
            self.on_train_start()
            self.on_train_epoch_start()
            batch = next(self.dataloader_train)  # the processes that augment have started
            start, limit, self.steps = time.monotonic(), 60 * options.minutes, 0
            while (elapsed := time.monotonic() - start) < limit:
                for group in self.optimizer.param_groups:
                    group["lr"] = self.initial_lr * (1 - elapsed / limit) ** 0.9
                self.train_step(batch)
                self.steps += 1
                batch = next(self.dataloader_train)
            end_children()
            self.network.eval()
            return elapsed / 60

    folder = options.work / "preprocessed" / NAME
    plans = json.loads((folder / "nnUNetPlans.json").read_text()) | {"continue_training": False}
    facts = json.loads((options.work / "raw" / NAME / "dataset.json").read_text())
    trainer = TimedTrainer(plans, options.configuration, "all", facts, device=torch.device("cpu"))
    trainer.initialize()
    minutes = trainer.run_training()
    trainer.set_deep_supervision_enabled(False)
    return trainer, minutes


def predict(trainer, options):
    """Predict the images of the test, with nnU-Net's defaults; OUT/dataset.json has the labels."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        trainer.dataset_json,
        "nnUNetTrainer",
        trainer.inference_allowed_mirroring_axes,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    predictor.predict_from_files_sequential(str(options.test / "imagesTr"), str(options.out), overwrite=True)
    shutil.copy(options.test / "dataset.json", options.out)


def end_children():
    for child in multiprocessing.active_children():
        child.kill()


if __name__ == "__main__":
    main()
