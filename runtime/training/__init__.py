"""Runs training steps of PyTorch modules by a plan."""
