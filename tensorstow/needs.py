"""What only some models and plans need: said before the work, not by a traceback in the middle of it."""

from __future__ import annotations

from .ir.errors import InputError


def require_torch(who: str) -> None:
    """Raises InputError, beginning with `who`, where PyTorch is not installed or cannot be loaded."""
    try:
        import torch  # pyright: ignore[reportUnusedImport]  # noqa: F401
    except (ImportError, OSError) as error:  # OSError: a library that it loads is missing or broken
        raise InputError(
            f"{who} needs PyTorch, which cannot be loaded ({error}); install it (pip install torch) into the Python of "
            "this command; ONNX files are planned and run without"
        ) from error
