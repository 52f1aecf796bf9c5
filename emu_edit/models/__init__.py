"""The networks of a model: denoiser, text encoder, image codec, task table."""
