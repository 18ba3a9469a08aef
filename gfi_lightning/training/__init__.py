"""The callback: samples, schedule and the training that is left as it was. Alone in knowing Lightning."""
