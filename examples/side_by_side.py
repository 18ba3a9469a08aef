"""Two methods watch the same training: guided feature inversion, and Captum's Grad-CAM, in one TensorBoard.

The pictures are those of digits.py, two handwritten digits on a photograph, of which the larger one is the class. As
its box is known, it can be told how much of their energy either method's maps have there.

    python examples/side_by_side.py [--epochs 10] [--log-dir side_by_side_logs]
"""

import argparse
import sys
from pathlib import Path

import lightning as L
from captum.attr import LayerGradCam
from digits import LARGER, SMALLER, ScatteredDigits, SmallCNN, split_digits
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from gfi_lightning import GFICallback, History


def grad_cam(model: L.LightningModule, images: Tensor, targets: Tensor) -> Tensor:
    """Grad-CAM at the last convolution: (N, 1, 8, 8)."""
    return LayerGradCam(model, model.features[-1]).attribute(images, targets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--train-size", type=int, default=6000, help="number of training pictures")
    parser.add_argument("--log-dir", default="side_by_side_logs")
    options = parser.parse_args()

    L.seed_everything(0)
    train_digits, val_digits = split_digits()
    print("Scattering digits over photographs ...")
    train = ScatteredDigits(options.train_size, 1, *train_digits)
    val = ScatteredDigits(500, 2, *val_digits)

    regions = {LARGER: val.boxes[:, 0], SMALLER: val.boxes[:, 1]}
    asked = {"num_samples": 16, "regions": regions, "max_overhead": 1}  # the same frames of both, on any machine
    trainer = L.Trainer(
        max_epochs=options.epochs,
        logger=TensorBoardLogger(options.log_dir, name=None),
        callbacks=[GFICallback(**asked), GFICallback(name="grad-cam", explainer=grad_cam, **asked)],
        enable_model_summary=False,
    )
    trainer.fit(SmallCNN(), DataLoader(train, batch_size=64, shuffle=True), DataLoader(val, batch_size=250))

    area = History.load(trainer.log_dir).regions[LARGER].mean()
    print(f"\nShare of the maps' energy in the larger digit's box, which covers {area:.2f} of a picture:")
    for method, name in (("guided feature inversion", None), ("Grad-CAM", "grad-cam")):
        energy = History.load(trainer.log_dir, name).curve(f"energy/{LARGER}").mean(1)
        print(f"  {method}: {energy[0]:.2f} untrained, {energy[-1]:.2f} trained")
    print(f"Side by side: {Path(sys.executable).parent / 'tensorboard'} --logdir {options.log_dir}", end=" ")
    print("--samples_per_plugin images=1000")
    print("In the tab Images the tags gfi/... are ours, and gfi/grad-cam/... are Grad-CAM's; curves likewise.")


if __name__ == "__main__":
    main()
