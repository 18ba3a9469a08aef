"""The method: explain a batch of images. Knows torch, and nothing of Lightning."""
