"""The maths of diffusion: pure functions of tensors that know no network, picture or data set.

A network meets the maths in one callable, `predict(z_t, t) -> output`, used by the loss and by
every sampler.
"""
