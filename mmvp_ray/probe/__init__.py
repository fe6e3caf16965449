"""Probes: what a vision-language model's scores lean on, by changing the image, the text or the word that is asked for."""
