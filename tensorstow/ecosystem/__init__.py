"""Bridges to what others use beside PyTorch: plans as maps of devices, and such maps as plans."""
