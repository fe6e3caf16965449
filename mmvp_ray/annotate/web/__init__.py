"""The web app: thin pages over the functions of mmvp_ray.annotate; nothing is decided here."""
