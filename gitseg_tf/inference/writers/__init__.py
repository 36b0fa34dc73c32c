"""Writers of predicted masks, one module per format."""
