"""elucidiff: the design space of diffusion models as a library."""
