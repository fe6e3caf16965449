"""Training of Mixture-of-Features models: two stages, on Ray Train, with every step a function of what it starts from."""
