"""PyTorch modules run by a plan: the module itself runs, and finds its weights where the plan has put them."""

from .executor import ModuleExecutor

__all__ = ["ModuleExecutor"]
