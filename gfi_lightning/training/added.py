"""The callback that the environment variable ``GFI_LIGHTNING`` adds to every Trainer."""

import lightning as L
from typing_extensions import override

from gfi_lightning.entry import VARIABLE
from gfi_lightning.errors import UsageError
from gfi_lightning.training import internals
from gfi_lightning.training.callback import GFICallback

_UNNAMED = ""  # which no one else can be called: names and numbers of the user's own ones do not depend on this one


class AddedCallback(GFICallback):
    """Explains as ``GFICallback()`` does, but leaves a Trainer where it has no place.

    That is: where the user or the module has given one, in a barebones Trainer, and where what is trained cannot be
    explained. That becomes a warning, as nobody has asked for it in this very Trainer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.name = _UNNAMED

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave, or be the only one. By now the Trainer has the module's own callbacks, too."""
        others = [one for one in internals.callbacks(trainer) if one is not self and isinstance(one, GFICallback)]
        if others or trainer.barebones:
            internals.remove_callback(trainer, self)
            return
        self.name = None
        super().setup(trainer, pl_module, stage)

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the untrained model, or leave."""
        try:
            super().on_train_start(trainer, pl_module)
        except UsageError as error:
            self._faults.warn(
                f"GFICallback, which {VARIABLE}=1 adds, cannot explain this training, and it goes on without: {error}"
            )
            internals.remove_callback(trainer, self)
            self.teardown(trainer, pl_module, "fit")
