"""Inference for people: pictures and an instruction in, pictures out."""
