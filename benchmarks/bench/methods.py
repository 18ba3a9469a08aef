"""The methods by name: ours by recipe, and the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from bench import peers
from bench.networks import Network
from bench.peers import Explain
from bench.perturbation import MeaningfulPerturbation
from gfi_lightning import GuidedFeatureInversion, Recipe, UsageError
from gfi_lightning.inversion.recipes import find_recipe

_BY_LAYER: dict[str, tuple[str, Explain]] = {
    "uniform": ("uniform ω", peers.uniform),
    "grad-cam": ("Grad-CAM", peers.grad_cam),
    "hirescam": ("HiResCAM", partial(peers.cam_of_library, kind="HiResCAM")),
    "layercam": ("LayerCAM", partial(peers.cam_of_library, kind="LayerCAM")),
    "scorecam": ("ScoreCAM", peers.score_cam),
}
_LAST_LAYER_ALONE = ("uniform",)
_SLOW = ("scorecam", "integrated-gradients", "occlusion", "perturbation")

FAMILIES = ("ours", "centre", *_BY_LAYER, "integrated-gradients", "occlusion", "perturbation")


@dataclass(frozen=True)
class Method:
    """One way of explaining.

    Attributes:
        name: of its row in the table.
        family: what the command line calls it.
        explain: (model, images, targets) → heatmaps (N, H, W).
        group: name of the same method without its layer; "" where it does not depend on one.
        slow: takes so many passes that it is run on fewer images.
        recipe: of ours, its name; "" otherwise.
    """

    name: str
    family: str
    explain: Explain
    group: str = ""
    slow: bool = False
    recipe: str = ""


def find_methods(
    network: Network,
    layers: Sequence[str],
    families: Sequence[str] = FAMILIES,
    recipes: Mapping[str, str | Recipe | Mapping[str, Any]] | None = None,
) -> list[Method]:
    """The methods of some families.

    Args:
        network: what is explained.
        layers: for the methods that look at one layer, the coarsest last; each makes a row.
        families: of :data:`FAMILIES`; and "ours:" with a recipe's name for that alone.
        recipes: name to a recipe, or to keyword arguments of :class:`GuidedFeatureInversion`, for family "ours".

    Raises:
        UsageError: there is no such family.
    """
    recipes = recipes or {}
    known = (*FAMILIES, *(f"ours:{name}" for name in recipes))
    unknown = sorted(set(families) - set(known))
    if unknown:
        raise UsageError(f"methods {', '.join(unknown)} are unknown: use some of {', '.join(known)}.")
    if "ours" not in families:
        recipes = {name: recipe for name, recipe in recipes.items() if f"ours:{name}" in families}
    wanted = {family.partition(":")[0] for family in families}
    return [
        method for family in FAMILIES if family in wanted for method in _methods_of(family, network, layers, recipes)
    ]


def recipe_fields(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain values, the same ones in every process."""
    return {name: getattr(value, "__name__", value) for name, value in vars(recipe).items()}


def reference_method(layers: Sequence[str]) -> Method:
    """Grad-CAM at the last layer, to which everything is compared."""
    return _by_layer("grad-cam", layers[-1:])[0]


def _methods_of(
    family: str, network: Network, layers: Sequence[str], recipes: Mapping[str, str | Recipe | Mapping[str, Any]]
) -> list[Method]:
    if family == "ours":
        return _ours(network, recipes)
    if family in _BY_LAYER:
        return _by_layer(family, layers[-1:] if family in _LAST_LAYER_ALONE else layers)
    return [_alone(family, network)]


def _ours(network: Network, recipes: Mapping[str, str | Recipe | Mapping[str, Any]]) -> list[Method]:
    options = {
        name: dict(recipe) if isinstance(recipe, Mapping) else {"recipe": recipe} for name, recipe in recipes.items()
    }
    rows = [
        Method(
            f"GFI, {name}",
            "ours",
            partial(explain_ours, options={"score": network.score, **given}),
            slow=_many(given),
            recipe=name,
        )
        for name, given in options.items()
    ]
    if "default" in options:
        given = {"score": network.score, **options["default"]}
        without_target = partial(explain_ours_without_target, options=given)
        rows.append(Method("GFI, default, stage 1 alone", "ours", without_target, recipe="default"))
    return rows


def _many(options: Mapping[str, Any]) -> bool:
    """Whether a recipe takes as many passes as the slow methods."""
    recipe = find_recipe(options.get("recipe", "default"))
    return recipe.inversion_steps + recipe.evidence_passes + 2 * recipe.target_steps > 50


def explain_ours(model: nn.Module, images: Tensor, targets: Tensor, *, options: Mapping[str, Any]) -> Tensor:
    """Guided feature inversion, with the layers that it chooses itself unless the options name some."""
    return GuidedFeatureInversion(model, **options).explain(images, targets).heatmaps


def explain_ours_without_target(
    model: nn.Module, images: Tensor, targets: Tensor, *, options: Mapping[str, Any]
) -> Tensor:
    """Stage 1 of guided feature inversion: what the features preserve, whatever the class."""
    return GuidedFeatureInversion(model, **options).invert(images).foreground


def _by_layer(family: str, layers: Sequence[str]) -> list[Method]:
    title, explain = _BY_LAYER[family]
    return [
        Method(f"{title}, {layer}", family, partial(explain, layer=layer), group=title, slow=family in _SLOW)
        for layer in layers
    ]


def _alone(family: str, network: Network) -> Method:
    title, explain = {
        "centre": ("centre", peers.centre),
        "integrated-gradients": ("integrated gradients", peers.integrated_gradients),
        "occlusion": ("occlusion", peers.occlusion),
        "perturbation": ("meaningful perturbation", MeaningfulPerturbation(score=network.score)),
    }[family]
    return Method(title, family, explain, slow=family in _SLOW)
