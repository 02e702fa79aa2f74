SPECTRA = ("decaying", "gaussian")  # of the layers that the suite `init` measures on
