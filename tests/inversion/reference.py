"""Guided feature inversion of one image and one target, as slow and obvious as it can be.

Written straight from the method's two tables of constants, with ordinary hooks, torch's own Adam, and one
image at a time; it shares no code with the package.
"""

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
