"""The callback: when to explain, and where the pictures go."""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
from torch import nn
from typing_extensions import override

from gfi_lightning.errors import UsageError, attempt, check_count
from gfi_lightning.guard import preserved_rng
from gfi_lightning.inversion.backgrounds import background_function
from gfi_lightning.inversion.layers import as_layers, module_name
from gfi_lightning.inversion.recipes import Recipe, find_recipe
from gfi_lightning.inversion.scores import check_score
from gfi_lightning.recording.encoding import Pictures, encoding
from gfi_lightning.recording.history import History, evaluation_id
from gfi_lightning.recording.images import normalization
from gfi_lightning.recording.loggers import is_tensorboard, picture_outlets, unknown_loggers
from gfi_lightning.recording.pictures import caption_of_sample, draw_sample
from gfi_lightning.training import arguments, internals
from gfi_lightning.training.budget import Budget
from gfi_lightning.training.faults import Faults, Said
from gfi_lightning.training.foreign import Foreign
from gfi_lightning.training.notices import (
    first_line,
    last_line,
    other_images,
    resumed_line,
    runs_to_come,
    samples_in_words,
    title,
)
from gfi_lightning.training.progress import QUIET, Progress, SlowProgress, bar_opener
from gfi_lightning.training.ranks import Ranks
from gfi_lightning.training.regions import check_alarm, check_regions, check_watched
from gfi_lightning.training.samples import is_batch
from gfi_lightning.training.schedule import Schedule
from gfi_lightning.training.session import Seen, Session
from gfi_lightning.training.share import Settings
from gfi_lightning.training.showing import REST_IS_KEPT, Showing, Wishes
from gfi_lightning.training.steps import StepWatch
from gfi_lightning.training.types import (
    BackgroundLike,
    Forward,
    LayerLike,
    Layers,
    MapFunction,
    OnError,
    RecipeName,
    Regions,
    SamplesLike,
    ScheduleLike,
    ScoreLike,
    SplitBatch,
    TargetsLike,
)

ROOT = "gfi"  # of all tags, and the folder of the maps
Scalars = dict[str, float]  # by tag

_STATE = "gfi_lightning"  # where our state lies in a checkpoint
# What of it tells which samples, and how to explain them.
_OF_SAMPLES = ("indices", "dataset_size", "layer", "method", "colors")
_SEED = 0  # of everything random that explaining runs into, so that the same weights give the same picture


class GFICallback(L.Callback):
    """Shows in TensorBoard, or another logger, what the model looks at, on the same validation images all along.

    Once before the first training step, then by its schedule, and at the end of the training, it explains a
    few fixed validation images by guided feature inversion and logs, under tags that start with ``gfi/``, a
    picture per sample, an overview of all, and the curves ``gfi/preserved``, ``gfi/removed`` (the target's
    score on what is kept and on what is removed) and ``gfi/drift`` (1 − rank correlation with the maps of the
    run before), means over the samples. It also runs once under ``trainer.validate`` and ``trainer.test``, which
    is a history of its own, without films: after a fit in the same Trainer on its samples, else on the loader's, or,
    under ``trainer.validate`` of a checkpoint, on that one's.
    Steps are those of Lightning's own logged metrics: batches after which an optimiser stepped, counted from 0.

    Training is left exactly as it would be without: weights, modes, gradients, buffers, random numbers, checkpoints.
    :func:`gfi_lightning.testing.assert_harmless` checks that on a module of your own. In a distributed training
    every rank explains its share of the samples, and the first one shows them.

    In a config of LightningCLI a callable is where it can be imported from, such as ``my_module.my_function``.

    Args:
        every_n_epochs: explain at the end of every n-th training epoch.
        every_n_steps: explain after every n-th optimiser step, instead of by epochs. The run after the very first
            step has no place of its own on the x axis and is left out: step 0 shows the untrained model.
        schedule: "log": at steps 1, 2, 4, 8, … of the x axis in the first epoch, where step 4 follows the fifth
            optimiser step, and then as ``every_n_epochs`` says, since most of the change comes early; or a callable
            from the number of optimiser steps so far, from 1, to whether it is time, instead of the other two. It must
            depend on that number alone: each rank asks it.
        max_overhead: the share of the wall time since the fit began that explaining may take, 0.02 for instance; 1:
            no limit. It holds once three runs are done: scheduled runs that would break it are skipped, the one at
            the end of the training never, and the curve ``gfi/overhead`` tells the share so far. None: 0.05 and
            a minute on top. (What is drawn once at the end is counted, not limited.)
        num_samples: how many images of the validation loader's data set are explained, spread evenly
            over the classes where labels can be had from the data set's ``targets``, ``labels``, ``y`` or
            ``tensors``, or a column of Hugging Face's; otherwise the first ones. Fewer where the data set has fewer.
        samples: indices into that data set instead, or a ready batch of images and labels.
        dataloader_idx: which of several validation loaders, or test loaders, as Lightning counts them.
        targets: which class is explained. "label": the image's label, and beside it the predicted class where
            that is another; "predicted": the predicted class; "contrast": why the label rather than the predicted
            class, and where they agree, or without labels, why the predicted class rather than the runner-up;
            "present": each class that is present, where labels are multi-hot, (N, classes), 0 or 1 each, and the
            most probable class where none is (understood by itself under ``score="sigmoid"``); a class index, or
            a list of them, for all images; or a callable from logits (N, classes) and labels, (N,), multi-hot
            (bool) or None, to class indices (N,) or (N, T).
        layer: the base layer, whose feature maps make up the heatmaps, by its name in the LightningModule, or the
            module itself; or several, the coarsest last; None: as many of the last feature maps as the recipe asks
            for. For this and the other arguments of the method see ``gfi_lightning.GuidedFeatureInversion``.
        inversion_layer: where stage 1 compares features, likewise; None: the last base layer.
        layers: several depths of the network, from shallow to deep: below each sample's picture comes a row of
            what the features of each still preserve, whatever the class. Each costs a stage 1 that runs up to it.
        recipe: all constants of the method: "default", "paper", "release" (the authors' code), or a
            ``gfi_lightning.Recipe``.
        background: what takes the place of what is removed: "blur", "mean", "noise", or a callable from images
            (N, C, H, W) to images of the same shape.
        score: of a class: "softmax", "sigmoid" where each is told by itself, or a callable from the model's output
            and the targets (N,) to one number each (N,); None: "sigmoid" where labels are multi-hot and some image has
            several or none, else "softmax". A single logit decides between the classes 0 and 1; and where a model ends
            in softmax or sigmoid, what went in there are its logits.
        class_names: by class index, in order; None: the data set's ``classes``, or the names of its label's feature
            (Hugging Face), or else the index.
        mean: of the images' normalisation, one number per channel, to show images as they were; None: that of the
            ``Normalize`` step in the data set's transform, or else one that the data set, the collate function, the
            data module or the module holds and the images can have gone through. Without one, images within [0, 1]
            are shown as they are, others by their own range.
        std: standard deviation of the images' normalisation, one number per channel; goes with ``mean``.
        chunk_size: how many images are optimised at once; None: at most 32, on a CPU about 200,000 pixels, and of
            128 × 128 px or more half of the images; on a GPU what half of the memory holds that is free at first.
        forward: how to get the model's output, a callable (module, images) → output; None: ``module(images)``, or as
            its forward takes them, by name or in a batch; or its only network, where the module has no forward.
        explainer: another method, filmed in the same way: a function (model, images, targets) → maps. ``model`` is
            the LightningModule in eval mode, whose parameters require no gradient; ``images`` (N, C, H, W) are as it
            sees them, and require one; ``targets`` (N,), int64. Maps are a tensor or an array, (N, h, w) or
            (N, 1, h, w), of any resolution and of any real numbers: negative parts are cut off, each map is divided by
            its maximum, and one that is zero or not finite is left empty. The arguments ``layer`` to ``recipe``,
            ``keep_weights``, ``warm_start`` and ``targets="contrast"`` do not go with it.
        regions: where in the samples something is known to lie, by name, {"object": ..., "watermark": ...}: for each
            item of the validation set, or, where there are not as many as that, for each sample, a box
            (x0, y0, x1, y1), in pixels of the image as the model sees it, x1 and y1 exclusive, several boxes, a mask
            (H, W), bool, several, or None; or a function from an item of the validation set to such a mapping. The
            curves ``gfi/energy/<name>`` (the share of the maps' energy that lies there) and ``gfi/pointing/<name>``
            (how many maps have their maximum there) follow them.
        alarm: by the region's name, {"watermark": 0.3}: one warning, as soon as a sample's map has more than this share
            of its energy there. The first run of a fit, of the untrained model, sets off none.
        per_class: log all curves for the samples of each class as well, ``gfi/<curve>/<class>``.
        per_sample: log all curves for each sample as well, ``gfi/<curve>/sample_<number>``.
        prog_bar: names of curves for the progress bar, ["preserved", "drift"] for instance.
        keep_weights: keep the channel weights ω in the history, for ``History.weights()``.
        batch: how to get at images (N, C, H, W) and labels (N,) or None in a validation batch, a callable batch →
            (images, labels); None: the usual forms are understood.
        name: of this callback, where a Trainer has several: its tags start with ``gfi/<name>/``. Without names
            the first one's start with ``gfi/``, the second one's with ``gfi/2/``, and so on.
        verbose: say in one line at the start of a fit what is explained and what it will cost, in one at its end where
            things are, and show a progress bar, in the style of the Trainer's own, where an explanation takes longer
            than two seconds. False: nothing but warnings.
        warm_start: each run starts from what the previous run of this fit has found for the same sample and target,
            the first one from nothing. That saves, on a single process, the passes for the default recipe's evidence;
            but the maps are others, and move less: a feature map that once spoke against the target stays subtracted
            or left out. What was found is in no checkpoint: a resumed fit starts from nothing.
        on_error: "warn": a failure to explain becomes one warning and training goes on; "raise": it ends it.

    Raises:
        UsageError: an argument cannot be right; in the constructor, or before the first training step.

    Example::

        trainer = L.Trainer(callbacks=[GFICallback()])
    """

    _trainer: weakref.ref[L.Trainer] | None
    _session: Session | None
    _last_step: int | None
    _updates_at_last_run: int | None
    _log_dir: Path | None
    _draws: bool
    _faults: Faults
    _restored: dict[str, Any]
    _budget: Budget
    _showing: Showing | None
    _samples_in_words: str | None
    _said_hello: bool

    def __init__(
        self,
        *,
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        schedule: ScheduleLike | None = None,
        max_overhead: float | None = None,
        num_samples: int = 8,
        samples: SamplesLike | None = None,
        dataloader_idx: int = 0,
        targets: TargetsLike = "label",
        layer: Layers | None = None,
        inversion_layer: LayerLike | None = None,
        layers: Layers | None = None,
        recipe: RecipeName | Recipe = "default",
        background: BackgroundLike = "blur",
        score: ScoreLike | None = None,
        class_names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        chunk_size: int | None = None,
        forward: Forward | None = None,
        batch: SplitBatch | None = None,
        explainer: MapFunction | None = None,
        regions: Regions | None = None,
        alarm: Mapping[str, float] | None = None,
        per_class: bool = False,
        per_sample: bool = False,
        prog_bar: Sequence[str] = (),
        keep_weights: bool = False,
        name: str | None = None,
        verbose: bool = True,
        warm_start: bool = False,
        on_error: OnError = "warn",
    ) -> None:
        arguments.check_schedule(schedule, every_n_epochs, every_n_steps)
        arguments.check_share("max_overhead", max_overhead)
        check_count("num_samples", num_samples)
        arguments.check_samples(samples)
        check_count("dataloader_idx", dataloader_idx, smallest=0)
        arguments.check_targets(targets)
        arguments.check_layer("layer", layer)
        arguments.check_layer("inversion_layer", inversion_layer)
        arguments.check_layer("layers", layers)
        arguments.check_class_names(class_names)
        arguments.check_callable("forward", forward, "(module, images) → output")
        arguments.check_callable("batch", batch, "batch → (images, labels)")
        arguments.check_explainer(
            explainer,
            targets,
            {
                "layer": (layer, None),
                "inversion_layer": (inversion_layer, None),
                "layers": (layers, None),
                "recipe": (recipe, "default"),
                "keep_weights": (keep_weights, False),
                "warm_start": (warm_start, False),
            },
        )
        check_regions(regions, is_batch(samples))
        check_alarm(alarm, regions)
        arguments.check_curves("prog_bar", prog_bar)
        if not callable(regions):
            check_watched(alarm or {}, prog_bar, regions or {})
        arguments.check_name(name)
        arguments.check_on_error(on_error)
        arguments.check_switches(
            per_class=per_class,
            per_sample=per_sample,
            keep_weights=keep_weights,
            verbose=verbose,
            warm_start=warm_start,
        )
        if chunk_size is not None:
            check_count("chunk_size", chunk_size)
        find_recipe(recipe)
        if score is not None:
            check_score(score)
        background_function(background)
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.max_overhead = max_overhead
        self._schedule = Schedule.of(schedule, every_n_epochs, every_n_steps)
        self.prog_bar = tuple(prog_bar)
        self.name = name
        self.verbose = verbose
        self.on_error = on_error
        self._wishes = Wishes(per_class, per_sample, keep_weights, dict(alarm or {}))
        self._settings = Settings(
            num_samples=num_samples,
            samples=samples,
            targets=targets,
            layer=layer,
            class_names=class_names,
            normalization=normalization(mean, std),
            batch=batch,
            regions=regions,
            dataloader_idx=dataloader_idx,
            explainer={
                "inversion_layer": inversion_layer,
                "layers": layers,
                "recipe": recipe,
                "background": background,
                "score": score,
                "chunk_size": chunk_size,
                "forward": forward,
            },
            foreign=None if explainer is None else Foreign.of(explainer, name),
            warm_start=warm_start,
        )
        self._trainer = None
        self._prefix = ROOT
        self._forget()

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start afresh in every fit and in every Trainer; what a checkpoint knows comes after this."""
        if stage == "fit" or self._trainer is None or self._trainer() is not trainer:
            self._forget()
        self._trainer = weakref.ref(trainer)
        self._prefix = _prefix(self, trainer)
        self._name_layers(pl_module)

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Choose and read the samples, and show the untrained model. Misuse ends the fit here."""
        with self._faults.guarded(raise_misuse=True):
            with self._budget.spending():
                session = self._open_session(trainer)
            if session is not None and self._last_step is None:
                updates = internals.batches_that_stepped(trainer)
                scalars = self._run(trainer, pl_module, updates, trainer.current_epoch)
                internals.set_metrics(trainer, scalars, self._in_progress_bar())
                self._updates_at_last_run = updates
            elif session is not None:
                self._faults.inform(resumed_line(title(self._prefix, ROOT), self._schedule))
            self._warn_of_stale_monitors(trainer)

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Explain if the schedule counts steps and it is time."""
        if self._schedule.at_step is None:  # nothing is to be asked of Lightning after every batch
            return
        with self._faults.guarded():
            step = internals.batches_that_stepped(trainer)
            if internals.optimizer_stepped(trainer) and self._schedule.is_after_step(step + 1, trainer.current_epoch):
                scalars = self._run_within_budget(trainer, pl_module, step)
                self._log_in_module(pl_module, scalars, on_step=True)

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Explain if the schedule counts epochs and it is time."""
        if self._schedule.is_after_epoch(trainer.current_epoch):
            with self._faults.guarded():
                scalars = self._run_within_budget(trainer, pl_module, _step_of_epoch_metrics(trainer))
                self._log_in_module(pl_module, scalars, on_step=False)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Explain the final weights, unless they have just been, and say what was spent."""
        with self._faults.guarded():
            if self._updates_at_last_run != internals.batches_that_stepped(trainer):
                # After a single step its place is taken by the untrained model, and the next one is free.
                first_free = 0 if self._last_step is None else self._last_step + 1
                step = max(_step_of_epoch_metrics(trainer), first_free)
                scalars = self._run(trainer, pl_module, step, max(trainer.current_epoch - 1, 0))
                internals.set_metrics(trainer, scalars, self._in_progress_bar())
            if self._session is not None and internals.is_first_rank():
                with self._budget.spending():
                    self._finish(trainer)

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what was done and where it is, below the progress bar, which is closed by now."""
        with self._faults.guarded():
            self._say_goodbye(trainer)

    @override
    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Watch the first one of a training."""
        if self._session is not None and not self._watch.is_over and trainer.state.fn == "fit":
            with self._faults.guarded(), attempt("look at what validation_step gives the model", REST_IS_KEPT):
                self._session.watch(self._watch, trainer, pl_module, batch, dataloader_idx)

    @override
    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Say if the model was given something else than what is explained."""
        if (other := self._watch.end()) is not None:
            with self._faults.guarded():
                self._faults.warn(other_images(*other), "other images")

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Explain under ``trainer.validate``."""
        if trainer.state.fn == "validate":
            self._run_in_evaluation(trainer, pl_module)

    @override
    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Explain under ``trainer.test``."""
        self._run_in_evaluation(trainer, pl_module)

    def replay(
        self, trainer: L.Trainer, pl_module: L.LightningModule, moments: Iterable[tuple[int, int, dict[str, Any]]]
    ) -> History | None:
        """Explain a training that is over, as if it were under way.

        To be called on every rank, within an evaluation of the Trainer that this is a callback of.

        Args:
            trainer: whose evaluation it is.
            pl_module: in which, whenever the next moment is asked for, lie the weights of that moment.
            moments: the step of the x axis, the epoch, and the checkpoint that the weights are from.

        Returns:
            The history, without ω and depths, on the first rank; None elsewhere, and where nothing was explained.

        Raises:
            UsageError: what was asked for cannot be explained.
        """
        self._forget()
        for step, epoch, checkpoint in moments:
            with self._faults.guarded(raise_misuse=True):
                if self._session is None:
                    before = checkpoint.get(_STATE, {}).get(self._prefix, {})
                    self._restored = {name: before[name] for name in _OF_SAMPLES if name in before}
                if self._open_session(trainer) is not None:
                    self._run(trainer, pl_module, step, epoch)
        if self._showing is None:
            return None
        self._finish(trainer)
        self._say_goodbye(trainer)
        return self._showing.history

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let go of the model."""
        self._let_go()

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Let go of the model, as no teardown follows."""
        self._let_go()

    @override
    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Which samples, and how far we are; it loads with ``weights_only``."""
        # Not by state_dict(), whose key must differ between the callbacks of a Trainer before it knows them.
        state = self._restored
        if self._session is not None:
            state = state | self._session.state()
            state |= {"last_step": self._last_step, "updates_at_last_run": self._updates_at_last_run}
            state |= {} if self._showing is None else self._showing.state()
        checkpoint.setdefault(_STATE, {})[self._prefix] = state

    @override
    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on with the samples of the run that is resumed."""
        self._restored = dict(checkpoint.get(_STATE, {}).get(self._prefix, {}))

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_trainer": None}  # a weak reference cannot be pickled

    def _let_go(self) -> None:
        # Lightning gives every callback the module's own methods for logging.
        for method in ("log", "log_dict"):
            vars(self).pop(method, None)
        self._watch.end()

    def _forget(self) -> None:
        self._session = None
        self._last_step = None
        self._updates_at_last_run = None
        self._log_dir = None
        self._draws = False
        self._faults = Faults(self.on_error == "raise", self.verbose)
        self._restored = {}
        self._budget = Budget(self.max_overhead)
        self._showing = None
        self._samples_in_words = None
        self._said_hello = False
        self._watch = StepWatch()

    def _name_layers(self, pl_module: L.LightningModule) -> None:
        """Keep the layers by name, so as not to hold on to the model; those that are not there yet stay."""
        with suppress(UsageError):
            if self._settings.layer is not None:
                names = [module_name(pl_module, layer) for layer in as_layers(self._settings.layer)]
                self._settings = replace(self._settings, layer=names)
            explainer = self._settings.explainer
            if isinstance(layer := explainer["inversion_layer"], nn.Module):
                explainer["inversion_layer"] = module_name(pl_module, layer)
            if explainer["layers"] is not None:
                explainer["layers"] = [module_name(pl_module, layer) for layer in as_layers(explainer["layers"])]

    def _open_session(self, trainer: L.Trainer) -> Session | None:
        """The samples of this run, read when they are first needed; None where nothing is to be explained."""
        if self._session is not None or (ranks := self._ranks(trainer)) is None:
            return self._session
        # The first rank shows what there is; others may have no loggers, or none that know where they write.
        self._log_dir, self._draws = ranks.from_first(lambda: self._places(trainer))
        with preserved_rng(_SEED):
            # On every rank, in case the module's own dataloader hook talks to the others.
            index = self._settings.dataloader_idx
            loader = None if is_batch(self._settings.samples) else ranks.agree(lambda: _loader(trainer, index))
            self._session = Session(
                self._settings, loader, self._restored, self._faults.warn, self._faults.inform, ranks
            )
        if callable(self._settings.regions):  # whose names are known only now
            self._check_alarm(self._session.regions, may_lack=trainer.state.fn == "test")
        self._last_step = self._restored.get("last_step")
        self._updates_at_last_run = self._restored.get("updates_at_last_run")
        return self._session

    def _check_alarm(self, regions: Sequence[str], may_lack: bool) -> None:
        """Refuse an alarm of a region that does not exist; a test set may lack what the validation set has."""
        alarm = self._wishes.alarm
        if not may_lack:
            check_watched(alarm, (), regions)
        elif lacking := [name for name in alarm if name not in regions]:
            names = ", ".join(map(repr, lacking))
            self._faults.inform(
                f"GFICallback: alarm= watches {names}, and regions= finds no such region in the test set."
            )
            self._wishes = replace(self._wishes, alarm={name: alarm[name] for name in alarm if name in regions})

    def _places(self, trainer: L.Trainer) -> tuple[Path | None, bool]:
        """The log directory, None: nothing is to be written; and whether anybody sees pictures. On the first rank."""
        folder: Path | None = Path(trainer.default_root_dir)
        remedy = f"Its first logger was asked for it. Maps go to {folder} instead."
        with self._faults.guarded(), attempt("find the log directory", remedy):
            folder = internals.log_folder(trainer)
        outlets = picture_outlets(trainer.loggers, self._prefix, folder)
        if strangers := unknown_loggers(trainer.loggers):
            names, places = " and ".join(strangers), " and ".join(outlet.name for outlet in outlets) or "nobody"
            self._faults.inform(
                f"GFICallback sends {names} its curves only, as it is not known how pictures are shown there: they go "
                f"to {places}. A method log_pictures(pictures, step) in its class takes them."
            )
        return folder, bool(outlets)

    def _ranks(self, trainer: L.Trainer) -> Ranks | None:
        """Those who explain; None where nobody can, or where nobody would see it."""
        ranks = internals.ranks(trainer)
        if ranks is None:
            self._faults.warn(
                f"GFICallback does not explain under {type(trainer.strategy).__name__}, which is not supported yet. "
                "Training goes on without it."
            )
        elif trainer.barebones:
            self._faults.inform("GFICallback explains nothing: the Trainer is barebones, and has no logger to show it.")
            return None
        elif self._settings.foreign is not None and ranks.sharded and ranks.count > 1:
            self._faults.warn(
                f"GFICallback(explainer=...) does not explain under {type(trainer.strategy).__name__}: each pass of a "
                "model that is spread over the ranks takes all of them, and what another method does with it is not "
                "known to be the same on each. Training goes on without it."
            )
            return None
        return ranks

    def _run_within_budget(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> Scalars:
        """Explain and show, unless it would take more time than it may."""
        if step != self._last_step:
            session = self._open_session(trainer)
            # By the first rank's clock, as either all explain or none.
            if session is not None and not session.ranks.from_first(self._budget.allows_another):
                self._budget.skip(step)
                return {}
        return self._run(trainer, pl_module, step, trainer.current_epoch)

    def _run(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int, epoch: int | None) -> Scalars:
        """Explain and show, unless this step has been; the curves by their tags, on every rank.

        In an epoch of a training, or, None, outside of one.
        """
        if internals.is_uninitialized(pl_module):  # its first forward pass draws its weights: not ours to make
            return {}
        session = self._open_session(trainer)
        if session is None or step == self._last_step:
            return {}
        ranks = session.ranks
        with self._budget.run(step), preserved_rng(_SEED):
            progress = self._progress(trainer)
            seen = session.explain(trainer, pl_module, measure_floor=epoch is not None, progress=progress)
            # Together, because with on_error="raise" a failure ends the run on every rank.
            pictures = ranks.agree(lambda: self._draw(session, seen, step))
            gathered = ranks.gather((seen, pictures, self._faults.take_unsaid()))
            scalars = ranks.from_first(lambda: self._show(trainer, session, gathered or [], step, epoch))
        self._last_step = step
        self._updates_at_last_run = step + 1
        self._say_hello(trainer, session)
        return scalars

    def _draw(self, session: Session, seen: Seen, step: int) -> Pictures:
        """This rank's samples, encoded, by tag; empty where that failed."""
        pictures: Pictures = {}
        with self._faults.guarded(), attempt("draw its pictures", REST_IS_KEPT), encoding(pictures) as encode:
            for number, sample in seen.samples.items() if self._draws else ():
                pixels = draw_sample(sample, number, step, session.class_names)
                caption = caption_of_sample(sample, number, session.class_names)
                encode(f"{self._prefix}/sample_{number}", pixels, caption)
        return pictures

    def _show(
        self,
        trainer: L.Trainer,
        session: Session,
        gathered: list[tuple[Seen, Pictures, Said]],
        step: int,
        epoch: int | None,
    ) -> Scalars:
        """Keep the maps, log the curves and the pictures; the curves by their tags."""
        for said_elsewhere in [said for _, _, part in gathered for said in part]:
            self._faults.warn(*said_elsewhere)
        seen = [part for part, _, _ in gathered]
        record = session.record(seen, step, epoch)
        self._samples_in_words = samples_in_words(record, "" if is_batch(self._settings.samples) else "validation ")
        curves = session.curves(record, seen)
        drawn = {tag: picture for _, part, _ in gathered for tag, picture in part.items()} if self._draws else None
        overhead = self._budget.overhead if trainer.state.fn == "fit" else None
        is_untrained = trainer.state.fn == "fit" and self._last_step is None
        if self._showing is None:
            self._showing = Showing(
                self._prefix, self._log_dir, session.class_names, self._wishes, self._faults, self._restored
            )
        return self._showing.show(trainer.loggers, record, curves, drawn, overhead, is_untrained)

    def _finish(self, trainer: L.Trainer) -> None:
        """Draw what is drawn once, at the end, on the first rank."""
        if self._showing is not None and self._last_step is not None and self._draws:
            self._showing.finish(trainer.loggers, self._last_step)

    def _progress(self, trainer: L.Trainer) -> Progress:
        """A bar, on the first rank, if the Trainer has one."""
        shown = self.verbose and internals.is_first_rank()
        opener = bar_opener(trainer, f"{title(self._prefix, ROOT)} explains") if shown else None
        return QUIET if opener is None else SlowProgress(opener, self._faults)

    def _say_hello(self, trainer: L.Trainer, session: Session) -> None:
        """After the first run of a fit, from which it is known what a run takes."""
        if self._said_hello or self._samples_in_words is None or trainer.state.fn != "fit":
            return
        self._said_hello = True
        with self._faults.guarded(), attempt("say what it explains", ""):
            to_come = runs_to_come(trainer, self._schedule)
            name, floor = title(self._prefix, ROOT), session.floor_seconds
            line = first_line(
                name, self._samples_in_words, session.base_layers, self._schedule, self._budget, floor, to_come
            )
            self._faults.inform(line)

    def _say_goodbye(self, trainer: L.Trainer) -> None:
        """What was done and where it is, on the first rank."""
        if self._session is None or not internals.is_first_rank():
            return
        boards = [str(one.log_dir) for one in trainer.loggers if is_tensorboard(one)] if self._draws else []
        outlets = [outlet.name for outlet in picture_outlets(trainer.loggers, self._prefix, self._log_dir)]
        folder = None if self._log_dir is None or self._showing is None else self._log_dir / self._prefix
        name = title(self._prefix, ROOT)
        self._faults.inform(last_line(name, self._budget, folder, self._log_dir, boards, outlets))

    def _warn_of_stale_monitors(self, trainer: L.Trainer) -> None:
        if self._schedule.every_n_epochs is None:
            return
        for monitor in internals.monitored_within_epochs(trainer):
            if monitor.startswith(f"{self._prefix}/"):
                self._faults.warn(
                    f"ModelCheckpoint(monitor={monitor!r}) saves elsewhere than at the end of an epoch, when "
                    "GFICallback explains, and would judge weights by the explanation of earlier ones. Give "
                    "ModelCheckpoint(save_on_train_epoch_end=True), or GFICallback(every_n_steps=...) that fits it: "
                    "its runs come before a validation."
                )

    def _log_in_module(self, pl_module: L.LightningModule, scalars: Scalars, on_step: bool) -> None:
        with attempt("log its curves in the module", "They are in the loggers all the same."):
            for tag, value in scalars.items():
                internals.log_in_module(pl_module, tag, value, tag in self._in_progress_bar(), on_step)

    def _in_progress_bar(self) -> set[str]:
        return {f"{self._prefix}/{name}" for name in self.prog_bar}

    def _run_in_evaluation(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Explain once; what a training keeps, its history, drift and state in checkpoints, is not touched by it."""
        with self._faults.guarded():
            apart = self._apart(trainer)
            if apart._open_session(trainer) is not None:
                step = internals.batches_that_stepped(trainer)
                scalars = apart._run(trainer, pl_module, step, None)
                internals.set_metrics(trainer, scalars, self._in_progress_bar())

    def _apart(self, trainer: L.Trainer) -> "GFICallback":
        """One for the samples of a fit that went before in this Trainer, or of a checkpoint, and else its own."""
        apart = copy(self)
        apart._forget()
        apart._faults = self._faults
        if self._session is not None:
            apart._session, apart._log_dir, apart._draws = self._session.apart(), self._log_dir, self._draws
        # A checkpoint's samples are from the validation set.
        names = ("layer", "method") if trainer.state.fn == "test" else _OF_SAMPLES
        apart._restored = {name: self._restored[name] for name in names if name in self._restored}
        alarmed = self._restored if self._showing is None else self._showing.state()
        apart._restored |= {"run_id": evaluation_id(), "alarmed": alarmed.get("alarmed", [])}
        return apart


def _loader(trainer: L.Trainer, dataloader_idx: int) -> Any:
    with attempt("get the validation loader", "Give samples=: a ready batch (images, labels) needs none."):
        return internals.evaluation_loader(trainer, dataloader_idx)


def _prefix(callback: GFICallback, trainer: L.Trainer) -> str:
    """What the tags of one of a Trainer's callbacks start with."""
    siblings = [other for other in internals.callbacks(trainer) if isinstance(other, GFICallback)]
    nameless = [other for other in siblings if other.name is None]
    names = [str(1 + nameless.index(other)) if other.name is None else other.name for other in siblings]
    name = names[siblings.index(callback)] if callback in siblings else callback.name or "1"
    if names.count(name) > 1:
        raise UsageError(
            f"Two GFICallbacks of this Trainer are named {name!r}: give them different names. "
            "(Those without one are '1', '2', and so on.)"
        )
    return ROOT if callback.name is None and name == "1" else f"{ROOT}/{name}"


def _step_of_epoch_metrics(trainer: L.Trainer) -> int:
    """Lightning logs an epoch's metrics at the index of its last batch that stepped."""
    return max(internals.batches_that_stepped(trainer) - 1, 0)
