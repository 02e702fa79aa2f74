"""Training: the one LightningModule, its loader, loss, optimizer and callbacks; neither pairs nor spectra."""
