"""Reading features out of models: taps on layers, and pooling to rows."""
