"""Image translation: CycleGAN trained on two domains, then the whole source in the target's style."""

from udas_fast.training.translation.run import Translation, TranslationConfig, at_native_size, open_datasets

__all__ = ["Translation", "TranslationConfig", "at_native_size", "open_datasets"]
