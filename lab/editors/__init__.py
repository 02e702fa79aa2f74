"""Editors are the only writers of a model's structure after step 0."""
