"""Ways of making a model trainable: one family a module, chosen by `model.adapt`."""
