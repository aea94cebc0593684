"""fedkd: federated knowledge distillation. This package is the vocabulary and the mathematics."""

__version__ = "0.1.0"
