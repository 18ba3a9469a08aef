"""Guided feature inversion of one image and one target, as slow and obvious as it can be.

Written straight from the method's two tables of constants, with ordinary hooks, torch's own Adam, and one
image at a time; it shares no code with the package.
"""

import itertools
import math

import torch
from torch.nn import functional as F


def capture(model, layer, image):
    found = []
    handle = dict(model.named_modules())[layer].register_forward_hook(lambda m, a, out: found.append(out.clone()))
    logits = model(image)
    handle.remove()
    return found[-1], logits


def paper_mask(weights, maps, size):
    total = sum(weights[k] * maps[0, k] for k in range(len(weights)))
    total = (total - total.min()) / (total.max() - total.min())
    return F.interpolate(total[None, None], size=size, mode="bilinear", align_corners=False)


def release_mask(weights, maps, size):
    total = sum(weights[k] * maps[0, k] for k in range(len(weights)))
    total = F.interpolate(total[None, None], size=size, mode="bilinear", align_corners=True)
    return (total - total.min()) / total.max()


def probability(logits, target, score):
    if score == "softmax":
        return logits.softmax(1)[0, target]
    return torch.sigmoid(logits)[0, target]


def explain_like_paper(
    model, image, target, background, base, inversion, *, steps=(10, 70), score="softmax", multilabel=False
):
    size = image.shape[-2:]
    maps = capture(model, base, image)[0].detach()
    reference = capture(model, inversion, image)[0].detach()
    weights = torch.full((maps.shape[1],), 0.1, dtype=image.dtype, requires_grad=True)

    optimizer = torch.optim.Adam([weights], lr=0.01)
    for _ in range(steps[0]):
        mask = paper_mask(weights, maps, size)
        kept = image * mask + background * (1 - mask)
        loss = ((capture(model, inversion, kept)[0] - reference) ** 2).sum() + 10 * weights.abs().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        weights.data.clamp_(min=0)
    foreground = paper_mask(weights, maps, size).detach()

    delta = 10 if multilabel else 1
    optimizer = torch.optim.Adam([weights], lr=0.01)
    for step in range(steps[1]):
        optimizer.param_groups[0]["lr"] = 0.01 / 2 ** (step // 10)
        mask = paper_mask(weights, maps, size)
        kept = image * mask + background * (1 - mask)
        removed = image * (1 - mask) + background * mask
        loss = -probability(model(kept), target, score) + probability(model(removed), target, score)
        loss = loss + delta * weights.abs().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        weights.data.clamp_(min=0)
    return paper_mask(weights, maps, size)[0, 0].detach(), weights.detach(), foreground[0, 0]


def explain_like_release(model, image, target, background, base, *, steps=(11, 69), score="softmax"):
    size = image.shape[-2:]
    maps = capture(model, base, image)[0].detach()
    weights = torch.full((maps.shape[1],), 0.1, dtype=image.dtype, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.01)
    foreground = None
    for step in range(sum(steps)):
        optimizer.param_groups[0]["lr"] = 0.01 / 2 ** (step // 10)
        mask = release_mask(weights, maps, size)
        kept = image * mask + background * (1 - mask)
        if step < steps[0]:
            error = ((capture(model, base, kept)[0] - maps) ** 2).sum() / (maps**2).sum()
            loss = error + 5 * (weights**2).sum()
        else:
            removed = image * (1 - mask) + background * mask
            loss = -probability(model(kept), target, score) + probability(model(removed), target, score)
            loss = loss + 2 * (weights**2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        weights.data.clamp_(min=0)
        if step + 1 == steps[0]:
            foreground = release_mask(weights, maps, size).detach()
    return release_mask(weights, maps, size)[0, 0].detach(), weights.detach(), foreground[0, 0]


def log_odds(logits, target):
    others = torch.cat([logits[0, :target], logits[0, target + 1 :]])
    return logits[0, target] - torch.logsumexp(others, 0)


def scaled(maps):
    """Each channel of (K, h, w) to [0, 1], and what it was divided by."""
    sizes = torch.stack([one.max() - one.min() for one in maps])
    parts = [(one - one.min()) / size if size > 0 else 0 * one for one, size in zip(maps, sizes, strict=True)]
    return torch.stack(parts), sizes


def product_mask(weights, maps, size, power):
    """Both layers' masks, the coarse one (the last) to a power; of one layer its mask."""
    if len(maps) == 1:
        return paper_mask(weights[0], maps[0][None], size)
    product = 1
    for number, (w, a) in enumerate(zip(weights, maps, strict=True)):
        mask = paper_mask(w, a[None], size)
        product = product * (mask**power if number == len(maps) - 1 else mask)
    return (product - product.min()) / (product.max() - product.min())


def multiplicative_descent(weights, loss, steps, rate, momentum=0.8):
    velocity = [torch.zeros_like(one) for one in weights]
    for step in range(steps):
        leaves = [one.clone().requires_grad_() for one in weights]
        loss(leaves).backward()
        factor = rate * (1 + math.cos(math.pi * step / steps)) / 2
        weights = []
        for number, leaf in enumerate(leaves):
            velocity[number] = momentum * velocity[number] + leaf.grad / leaf.grad.abs().max()
            moved = leaf.detach() * torch.exp(-factor * velocity[number])
            weights.append(moved / moved.norm())
    return weights


def signal_to_noise(passes):
    """What two passes have in common, on average over all pairs, is the signal; the rest of a pass is noise."""
    pairs = [float(one @ other) for one, other in itertools.permutations(passes, 2)]
    signal = max(sum(pairs) / len(pairs), 0)
    power = sum(float(one @ one) for one in passes) / len(passes)
    return signal / (power - sum(pairs) / len(pairs))


def explain_like_default(model, image, target, background, layers, recipe, shares_by_mask=None):
    """The default recipe, with the recipe's numbers, layer by layer and image by image.

    ``shares_by_mask``: a list, if the mask is asked, too, as if the layers gave patches; its evidence's share is added.
    """
    size = image.shape[-2:]
    raw = [capture(model, layer, image)[0][0].detach() for layer in layers]
    maps, ranges = zip(*map(scaled, raw), strict=True)
    reference = raw[-1]

    def mix(mask):
        return image * mask + background * (1 - mask), image * (1 - mask) + background * mask

    def stage_1(weights):
        mask = product_mask(weights, maps, size, recipe.coarsest_power)
        error = ((capture(model, layers[-1], mix(mask)[0])[0][0] - reference) ** 2).sum() / (reference**2).sum()
        return error + recipe.inversion_area_penalty * mask.mean()

    weights = [torch.full((len(one),), 0.1, dtype=image.dtype) for one in maps]
    weights = multiplicative_descent(weights, stage_1, recipe.inversion_steps, recipe.learning_rate)
    foreground = product_mask(weights, maps, size, recipe.coarsest_power)

    drawn = torch.Generator().manual_seed(0)
    noise = []
    for _ in range(recipe.evidence_passes // 2):
        pattern = torch.randn(image.shape[1:], generator=drawn).to(image)
        noise += [recipe.evidence_noise * (image.max() - image.min()) * sign * pattern for sign in (1, -1)]

    evidence, ratios = [], []
    for number, layer in enumerate(layers):
        passes = []
        for one in noise:
            found = []
            handle = dict(model.named_modules())[layer].register_forward_hook(
                lambda m, a, out, found=found: (found.append(out), out.clone())[1]
            )
            logits = model((image + one).requires_grad_())
            handle.remove()
            gradient = torch.autograd.grad(log_odds(logits, target), found)[0]
            per_channel = [
                (g * size_of_one * a).sum() / a.sum() if a.sum() > 0 else torch.zeros_like(size_of_one)
                for g, size_of_one, a in zip(gradient[0], ranges[number], maps[number], strict=True)
            ]
            passes.append(torch.stack(per_channel))
        evidence.append(sum(passes) / len(passes))
        ratios.append(signal_to_noise(passes))

    def started(evidence):
        """The feature maps with their signs, and ω."""
        evidence = [torch.where(one > 0, one, 0.0) for one in evidence[:-1]] + [
            torch.where(evidence[-1] > 0, evidence[-1], recipe.evidence_against * evidence[-1])
        ]
        signed = [a * e.sign()[:, None, None] for a, e in zip(maps, evidence, strict=True)]
        return signed, [w * e.abs() / (w * e.abs()).norm() for w, e in zip(weights, evidence, strict=True)]

    def loss_of(maps, weights):
        mask = product_mask(weights, maps, size, recipe.coarsest_power)
        kept, removed = mix(mask)
        gain = log_odds(model(kept), target) - recipe.removed_weight * log_odds(model(removed), target)
        return recipe.target_area_penalty * mask.mean() - gain

    if shares_by_mask is not None:
        half = torch.full((1, 1, *size), 0.5, dtype=image.dtype, requires_grad=True)
        by_mask = torch.autograd.grad(log_odds(model(mix(half)[0]), target), half)[0]
        asked = []
        for one in maps:
            enlarged = F.interpolate(one[None], size=size, mode="bilinear", align_corners=False)[0]
            # Of all pixels together, spread evenly over the map's positions: a map of one value is to have no evidence.
            everywhere = by_mask.sum() / one[0].numel()
            # A feature map that is nowhere has nothing to say.
            per_channel = [
                ((by_mask[0, 0] * e).sum() - everywhere * a.sum()) / max(a.sum(), 1e-9)
                for e, a in zip(enlarged, one, strict=True)
            ]
            asked.append(torch.stack(per_channel))
        kinds = [[one / one.norm() for one in kind] for kind in (evidence, asked)]
        shares = [math.exp(-loss_of(*started(kind)).item()) for kind in kinds]
        shares_by_mask.append(shares[1] / sum(shares))
        evidence = [(shares[0] * one + shares[1] * other) / sum(shares) for one, other in zip(*kinds, strict=True)]
    maps, weights = started(evidence)

    def cotangent():
        """Of the angle between what the kept and the removed image ask of the mask."""
        mask = product_mask(weights, maps, size, recipe.coarsest_power).detach().requires_grad_()
        kept, removed = mix(mask)
        (kept,) = torch.autograd.grad(log_odds(model(kept), target), mask)
        (removed,) = torch.autograd.grad(-log_odds(model(removed), target), mask)
        cosine = float((kept * removed).sum() / kept.norm() / removed.norm())
        return 1 / math.tan(math.acos(cosine)) if cosine > 0 else 0.0

    rate = recipe.learning_rate
    if len(layers) == 1 and recipe.reference_agreement > 0:
        rate = max(rate, min(rate * cotangent() / recipe.reference_agreement, recipe.largest_learning_rate))
    elif recipe.reference_signal_to_noise > 0:
        rate = min(rate * math.sqrt(min(ratios) / recipe.reference_signal_to_noise), recipe.largest_learning_rate)
    weights = multiplicative_descent(weights, lambda weights: loss_of(maps, weights), recipe.target_steps, rate)
    mask = product_mask(weights, maps, size, recipe.coarsest_power)
    return mask[0, 0].detach(), torch.cat(weights), foreground[0, 0].detach()
