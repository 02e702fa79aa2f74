"""A study's stages as a pure plan: what was declared and what is on disk go in, the next jobs come out. No torch."""
