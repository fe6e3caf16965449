"""Mixture-of-Features: CLIP's and a vision-only encoder's patch features mixed before a language model reads them."""
