"""Modules with a peculiarity each, of the kinds that real projects have."""

import itertools
from functools import partial

import lightning as L
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics import MeanMetric

from tests.networks import ToyCNN
from tests.training.modules import CLASSES, Pictures, ToyModule

FEW_PICTURES = partial(Pictures, 8)


class Data(L.LightningDataModule):
    """Four shuffled batches, augmented on request, and a validation set, which ``val`` gives."""

    def __init__(self, augment=False, batch_size=4, val=FEW_PICTURES, **loader_options):
        super().__init__()
        self.train, self.val = Pictures(16, augment, seed=1), val()
        self.batch_size = batch_size
        self.loader_options = loader_options

    def train_dataloader(self):
        return DataLoader(self.train, self.batch_size, shuffle=True, **self.loader_options)

    def val_dataloader(self):
        return [] if self.val is None else DataLoader(self.val, self.batch_size, **self.loader_options)


class CountsReads(Pictures):
    """What it gives depends on how often it has been read."""

    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        image, label = super().__getitem__(index)
        return image * self.reads, label


class Stream(IterableDataset):
    """Goes on where it was left, and comes to no end."""

    def __init__(self, size):
        pictures = Pictures(size)
        self.size, self.rest = size, (pictures[number % size] for number in itertools.count())

    def __iter__(self):
        return itertools.islice(self.rest, self.size - 1)


class FrozenPart(ToyModule):
    """Fine-tuned: a part is frozen and stays in eval mode."""

    def __init__(self):
        super().__init__()
        self.network.fine.eval().requires_grad_(False)


class UsedTwice(ToyModule):
    """One convolution is called twice in each pass."""

    def __init__(self):
        super().__init__()
        self.again = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, images):
        features = self.network.fine(images)
        for _ in range(2):
            features = self.again(features).relu()
        return self.network.head(self.network.coarse(self.network.pool(features)))


class TiedWeights(ToyModule):
    """Two convolutions have one weight, and different biases."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.second.weight = self.first.weight

    def forward(self, images):
        features = self.second(self.first(self.network.fine(images)).relu())
        return self.network.head(self.network.coarse(self.network.pool(features)))


class GAN(L.LightningModule):
    """Its discriminator tells the classes apart, and fakes from all of them; ``forward`` is the generator."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(
            nn.Linear(4, 8 * 4 * 4),
            nn.Unflatten(1, (8, 4, 4)),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Upsample(scale_factor=4),
            nn.Conv2d(8, 3, 3, padding=1),
        )
        self.discriminator = ToyCNN(classes=CLASSES + 1, gain=1.0).train()

    def forward(self, noise):
        return self.generator(noise)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        of_generator, of_discriminator = self.optimizers()
        fakes = torch.full_like(labels, CLASSES)
        self.toggle_optimizer(of_generator)
        loss = -F.cross_entropy(self.discriminator(self(torch.randn(len(images), 4))), fakes)
        self.step(of_generator, loss, "generator_loss")
        self.toggle_optimizer(of_discriminator)
        generated = self(torch.randn(len(images), 4)).detach()
        loss = F.cross_entropy(self.discriminator(torch.cat([images, generated])), torch.cat([labels, fakes]))
        self.step(of_discriminator, loss, "discriminator_loss")

    def step(self, optimizer, loss, name):
        self.log(name, loss)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.untoggle_optimizer(optimizer)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self.discriminator(batch[0]), batch[1]))

    def configure_optimizers(self):
        return [torch.optim.Adam(part.parameters(), 1e-2) for part in (self.generator, self.discriminator)]


class Scheduled(ToyModule):
    """A learning rate that changes by steps, by epochs, or when the validation loss does not fall."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = {
            "step": lambda: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20),
            "epoch": lambda: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5),
            "plateau": lambda: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=10.0),
        }[self.kind]()
        interval = "step" if self.kind == "step" else "epoch"
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": interval, "monitor": "val_loss"},
        }


class WithBackbone(ToyModule):
    """For BackboneFinetuning."""

    @property
    def backbone(self):
        return self.network.fine

    def configure_optimizers(self):
        return torch.optim.Adam([one for one in self.parameters() if one.requires_grad], lr=1e-2)


class SecondOrder(ToyModule):
    """LBFGS runs the training step several times for each of its own."""

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), 0.1, max_iter=3)


class WithRate(ToyModule):
    """For LearningRateFinder."""

    def __init__(self):
        super().__init__()
        self.lr = 1e-2

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.lr)


class Recomputing(ToyModule):
    """Activation checkpointing; the explained layer lies within."""

    def __init__(self, use_reentrant):
        super().__init__()
        self.use_reentrant = use_reentrant

    def forward(self, images):
        features = checkpoint(self.deep, self.network.fine(images), use_reentrant=self.use_reentrant)
        return self.network.head(features)

    def deep(self, features):
        return self.network.coarse(self.network.pool(features))


class Normed(ToyModule):
    """With spectral norm or weight norm on both convolutions."""

    def __init__(self, norm):
        super().__init__()
        for part in (self.network.fine, self.network.coarse):
            norm(part[0])


class Scripted(ToyModule):
    """A part is compiled by torch.jit, which hides its buffers and takes no hooks."""

    def __init__(self):
        super().__init__()
        self.network.fine = torch.jit.script(self.network.fine)


class Lazy(ToyModule):
    """Layers that draw their weights when they are first called."""

    def __init__(self):
        super().__init__()
        self.network.coarse[0] = nn.LazyConv2d(6, 3, padding=1)
        self.network.head[3] = nn.LazyLinear(CLASSES)


class InstanceNormed(ToyModule):
    """InstanceNorm with running statistics."""

    def __init__(self):
        super().__init__()
        self.network.fine[1] = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)


class Remembering(ToyModule):
    """Every forward, also in eval mode, changes ``state``, on which the loss depends.

    Args:
        kind: where the state is kept.
    """

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("queue", torch.zeros(3), persistent=False)
        self.register_buffer("unset", None)
        self.count, self.tensor, self.seen = 0, torch.zeros(()), []
        self.generator = torch.Generator().manual_seed(0)
        self.hidden = [nn.BatchNorm2d(3)]  # in a list: not one of modules()
        self.deep = Outside()
        self.deep.hidden = {"norms": [nn.BatchNorm2d(3)]}
        self.array, self.table = np.zeros(3), {"counts": {"calls": [0]}}
        self.scale = nn.Parameter(torch.ones(3, 1, 1))
        self.save_hyperparameters({"calls": 0})
        self.metric = MeanMetric()

    def forward(self, images):
        mean = images.float().mean()
        if self.kind != "buffer in place, with its graph":
            mean = mean.detach()
        if self.kind.startswith("buffer in place"):
            self.total += mean
        elif self.kind == "an object's counter":
            self.deep.append(float(mean))
        elif self.kind == "array":
            self.array += float(mean)
        elif self.kind == "nested":
            self.table["counts"]["calls"][0] += 1
        elif self.kind == "hyperparameters":
            self.hparams.calls += 1
        elif self.kind == "deeply hidden module":
            images = self.deep.hidden["norms"][0](images)
        elif self.kind == "parameter":
            self.scale.data = torch.renorm(self.scale.data, 2, 0, 1.0)
        elif self.kind == "parameter in place":
            self.scale.data.mul_(0.99)
        elif self.kind == "buffer replaced":
            self.queue = torch.cat([self.queue[1:], mean[None]])
        elif self.kind == "buffer resized":
            self.queue.resize_(len(self.queue) + 1)[-1] = mean
        elif self.kind == "buffer set for the first time":
            self.unset = mean if self.unset is None else self.unset + mean
        elif self.kind == "attribute set for the first time":
            self.new = getattr(self, "new", 0) + mean
        elif self.kind == "torchmetric":
            self.metric.update(mean)
        elif self.kind == "logger":
            self.logger.log_metrics({"mean": float(mean)}, step=self.trainer.global_step)
        elif self.kind == "counter":
            self.count += 1
        elif self.kind == "tensor in place":
            self.tensor += mean
        elif self.kind == "tensor replaced":
            self.tensor = self.tensor + mean
        elif self.kind == "list":
            self.seen.append(float(mean))
        elif self.kind == "generator":
            images = images + 0.01 * torch.randn(images.shape, generator=self.generator)
        elif self.kind == "hidden module":
            images = self.hidden[0](images)
        return super().forward(images * self.scale)

    def state(self):
        late = 0 if self.unset is None else self.unset
        measured = self.metric.compute() if self.kind == "torchmetric" else 0
        kept = self.total + self.queue.sum() + self.count + self.tensor + sum(self.seen) + sum(self.deep.values)
        kept = kept + float(self.array.sum()) + self.table["counts"]["calls"][0] + self.hparams.calls
        return kept + late + measured + getattr(self, "new", 0)

    def training_step(self, batch, batch_idx):
        self.log("state", self.state())
        return super().training_step(batch, batch_idx) * (1 + self.state().detach())


class Hooked(ToyModule):
    """With a hook of the user's, which writes down what is logged.

    Args:
        kind: which hook.
    """

    def __init__(self, kind):
        super().__init__()
        seen, weight = Outside(), self.network.head[3].weight
        self.seen = seen
        {
            "forward without gradient": lambda: self.network.pool.register_forward_hook(
                torch.no_grad()(lambda *_: seen.append(1.0))
            ),
            "forward": lambda: self.network.pool.register_forward_hook(lambda *_: seen.append(1.0)),
            "forward pre": lambda: self.network.pool.register_forward_pre_hook(lambda *_: seen.append(1.0)),
            "full backward": lambda: self.network.pool.register_full_backward_hook(
                lambda _, inputs, __: seen.append(float(inputs[0].norm()))
            ),
            "parameter": lambda: weight.register_hook(lambda grad: seen.append(float(grad.norm()))),
            "accumulated": lambda: weight.register_post_accumulate_grad_hook(
                lambda parameter: seen.append(float(parameter.grad.norm()))
            ),
        }[kind]()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.log("seen", float(len(self.seen.values)))
        self.log("seen_sum", sum(self.seen.values))


class StatefulCollate:
    """Collates a little differently each time."""

    calls = 0

    def __call__(self, items):
        self.calls += 1
        images, labels = torch.utils.data.default_collate(items)
        return images + 0.01 * self.calls, labels


class Outside:
    """An object of the user's, which is not the module's."""

    def __init__(self):
        self.values = []

    def append(self, value):
        self.values.append(value)
