"""Training: the one LightningModule, its loader, loss, optimizer and callbacks. The only importer of lightning."""
