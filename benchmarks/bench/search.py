r"""The recipes among which the default was chosen, for quality.py: how much better or worse is each, at what price?

    python benchmarks/quality.py --data VOC --ids train.txt --limit 120 --network mobilenet_v2_100 \
        --recipes bench.search:SEARCH --methods ours grad-cam layercam

On training images: what it finds there chose the default, and is no evidence for it. (The default comes first, so that
the table has all others less it. All but the first six take the same steps for all images, as the default did when
they were tried; smaller powers and 3 + 8 and 6 + 12 steps were tried on small networks, too.)
"""

from dataclasses import replace

from gfi_lightning.inversion.recipes import DEFAULT

ALIKE = replace(DEFAULT, reference_signal_to_noise=0.0, reference_agreement=0.0)
SMALLER_STEPS = replace(ALIKE, learning_rate=0.12)
NO_STEP = replace(ALIKE, inversion_steps=0, target_steps=0)

SEARCH = {
    "default": DEFAULT,
    "signal to noise 1.5": replace(DEFAULT, reference_signal_to_noise=1.5),
    "signal to noise 6": replace(DEFAULT, reference_signal_to_noise=6.0),
    "evidence by features alone": replace(DEFAULT, evidence_by_mask=False),
    "agreement 0.1": replace(DEFAULT, reference_agreement=0.1),
    "agreement 0.2": replace(DEFAULT, reference_agreement=0.2),
    "the same steps for all": ALIKE,
    "steps of 0.08": replace(ALIKE, learning_rate=0.08),
    "steps of 0.12": SMALLER_STEPS,
    "steps of 0.2": replace(ALIKE, learning_rate=0.2),
    "steps of 0.25": replace(ALIKE, learning_rate=0.25),
    "3 + 4 steps of 0.12": replace(SMALLER_STEPS, inversion_steps=3, target_steps=4),
    "power 1.7, steps of 0.12": replace(SMALLER_STEPS, coarsest_power=1.7),
    "three layers, steps of 0.12": replace(SMALLER_STEPS, resolutions=3),
    "power 1.5": replace(ALIKE, coarsest_power=1.5),
    "power 1": replace(ALIKE, coarsest_power=1.0),
    "3 + 8 steps": replace(ALIKE, inversion_steps=3, target_steps=8),
    "3 + 8 steps, power 1.5": replace(ALIKE, inversion_steps=3, target_steps=8, coarsest_power=1.5),
    "6 + 12 steps": replace(ALIKE, inversion_steps=6, target_steps=12),
    "area penalty 10": replace(ALIKE, target_area_penalty=10.0),
    "area penalty 22": replace(ALIKE, target_area_penalty=22.0),
    "16 passes for the evidence": replace(ALIKE, evidence_passes=16),
    "no step": NO_STEP,
    "no step, the last layer alone": replace(NO_STEP, resolutions=1, coarsest_power=1.0),
}
